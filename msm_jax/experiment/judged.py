"""Evaluations in which a model answers at length, and a judge says what its answers are."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from msm_jax import config as config_lib
from msm_jax.corpus.specs import Spec
from msm_jax.errors import UserError
from msm_jax.eval import eval_awareness, open_qa, reasoning, side_effects, stats
from msm_jax.eval.agentic import gates, grading, judge
from msm_jax.experiment.evaluation import QUESTION_TOKENS, Models
from msm_jax.stages import generation, judging, sampling
from msm_jax.stages.graph import VERSIONS, Kind, Stage
from msm_jax.storage import files


class Judged:
    """An evaluation of two stages: answers that are drawn once, and what a judge says of them. Another judge, or
    another wording of what it is asked, draws nothing anew.

    Attributes:
      title: what it is called in lines that people read.
      prompt_tokens: of a question, as plans take it.
    """

    name: str
    section: str  # of the configuration, by which answers are drawn: those of one section are drawn once
    title: str
    prompt_tokens: int
    columns: Sequence[dict[str, Any]] = ()
    measures = True

    def __init__(self, config: ConfigDict, specs: Sequence[Spec], world: Mapping[str, Any] | None):
        if self.section not in config:
            raise UserError(
                f"config.evaluations has {self.name}, which needs a judge: it is for kinds checkpoint and evaluation, "
                f"and this is of kind {config.kind}; leave it out"
            )
        for model in judging.judges_of(config):
            generation.price_per_token(config, model)  # before anything is drawn
        self._config, self.settings = config, config_lib.to_dict(config[self.section])
        if len(set(self.judges)) < len(self.judges):
            raise UserError(f"config.judge.second is {self.judges[0]}, which grades already; name another model")
        self.answer_length = self.settings["max_tokens"]

    @functools.cached_property
    def questions(self) -> list[dict[str, Any]]:
        """{"id", "messages", ...}"""
        raise NotImplementedError

    @property
    def asked_of_judge(self) -> Any:
        """All that changes what the judge is asked, beside the answers."""
        raise NotImplementedError

    @property
    def told(self) -> str:
        answers, repeats = len(self.questions) * self.settings["samples"], self.settings.get("repeats", 1)
        judges = " and by ".join(self.judges)
        return f"evaluation: {self.title}, {answers:,} answers of each model, judged {repeats} x by {judges}"

    @property
    def judges(self) -> list[str]:
        """By their names; the first has the numbers of the report."""
        return [generation.model_name(self._config, model, judges=True) for model in judging.judges_of(self._config)]

    @property
    def drawn(self) -> dict[str, int]:
        p = self.settings
        return {
            "prompts": len(self.questions),
            "samples": p["samples"],
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": p["max_tokens"] // 2,
            "max_tokens": p["max_tokens"],
        }

    @functools.cached_property
    def items(self) -> Stage:
        params = {"questions": files.fingerprint(self.questions, length=64)}
        run = functools.partial(sampling.write_questions, questions=self.questions)
        return Stage(Kind.CORPUS, f"questions-{self.section}", params, {}, run, VERSIONS[Kind.CORPUS])

    def score(self, models: Models, model: Stage, arm: str, seed: int) -> list[Stage]:
        p = self.settings
        of = {"arm": arm, "seed": seed, "evaluation": self.name}
        params = {"chat": models.chat, "model_name": self._config.assistant.name, "seed": seed}
        params |= {name: p[name] for name in ("samples", "temperature", "max_tokens")}
        inputs = {"model": model, "base": models.base, "tokenizer": models.tokenizer, "questions": self.items}
        run = functools.partial(sampling.draw, runtime=models.runtime)
        answers = Stage(
            Kind.SAMPLE, f"answers-{self.section}-{arm}-s{seed}", params, inputs, run, VERSIONS[Kind.SAMPLE],
            **of | {"evaluation": self.section},
        )  # fmt: skip
        judged = {
            "evaluation": self.name,
            **dict(zip(("model", "second"), self.judges, strict=False)),
            "asked": files.fingerprint(self.asked_of_judge, length=64),
            "answers": len(self.questions) * p["samples"],
            "repeats": p.get("repeats", 1),
            "calls": self.judge_tokens[0],
            "call_tokens": self.judge_tokens[1],
        }
        run = functools.partial(judging.grade, config=self._config)
        inputs = {"questions": self.items, "transcripts": answers}
        verdicts = Stage(
            Kind.VERDICTS, f"verdicts-{self.name}-{arm}-s{seed}", judged, inputs, run, VERSIONS[Kind.VERDICTS], **of
        )  # fmt: skip
        return [answers, verdicts]

    def control(self, models: Models, stated: Mapping[str, Stage]) -> Stage | None:
        return None

    @property
    def judge_tokens(self) -> tuple[int, int]:
        """(calls for an answer, tokens of each but for the answer), about."""
        return 1, 800


class OpenQuestions(Judged):
    """Section 4 of the paper: open questions on the model's own conduct, graded from 1 to 10."""

    name, title, prompt_tokens = "open_qa", "open questions", 2 * QUESTION_TOKENS
    section = name

    @functools.cached_property
    def questions(self) -> list[dict[str, Any]]:
        most, by_dimension = self.settings["questions"], {}
        for row in open_qa.questions(self._config.assistant.name):
            by_dimension.setdefault(row["dimension"], []).append(row)
        return [row for own in by_dimension.values() for row in own[:most]]

    @property
    def asked_of_judge(self) -> Any:
        return open_qa.RUBRIC.template, open_qa.dimensions()

    @property
    def judge_tokens(self) -> tuple[int, int]:
        return 1, (len(open_qa.RUBRIC.template) + 800) // 4


class AgenticMisalignment(Judged):
    """Sections 4 and 5 of the paper: does an agent whose goal or existence is threatened do harm? 27 cells."""

    name, title, prompt_tokens = "agentic_misalignment", "agentic misalignment", 3072
    section = name

    @functools.cached_property
    def questions(self) -> list[dict[str, Any]]:
        rows = grading.questions(self._config.assistant.name, self.settings["scratchpad"])
        count = self.settings["cells"] or len(rows)
        return [rows[len(rows) * place // count] for place in range(count)]

    @property
    def drawn(self) -> dict[str, int] | None:
        """What is drawn once counts once: for the first evaluation that needs it."""
        first = next(name for name in self._config.evaluations if name in _OF_TRANSCRIPTS)
        return super().drawn if first == self.name else None

    @property
    def asked_of_judge(self) -> Any:
        return judge.digest(), gates.facts()  # what the gates look for is a part of what is found

    @property
    def told(self) -> str:
        """With what it can find, which is known before anything is paid for."""
        cells, seeds = len(self.questions), len(self._config.seeds)
        design = stats.Design(cells, self.settings["samples"], seeds)
        these, like_these, runs = (stats.smallest_difference(design, scope) for scope in ("answers", "prompts", "runs"))
        found = f"{_rate(these)} on these {cells} prompts, {_rate(like_these)} on prompts like these, {_rate(runs)}"
        of = f"in other training runs, with {seeds} {'seed' if seeds == 1 else 'seeds'}"
        if self._config.kind == "evaluation":
            found, of = found.rpartition(", ")[0], "of the same models"
        return f"{super().told}\n  smallest difference found with power .8 (docs/statistics.md): {found} {of}"


class OfTranscripts(AgenticMisalignment):
    """Something else that a judge says of the same transcripts."""

    told = Judged.told


class Reasoning(OfTranscripts):
    """How agents reason (section 4.3 of the paper, D.5)."""

    name, title = "reasoning", "kinds of reasoning in agentic misalignment"

    @property
    def asked_of_judge(self) -> Any:
        return reasoning.RUBRIC.template, reasoning.categories()

    @property
    def judge_tokens(self) -> tuple[int, int]:
        return 1, (len(reasoning.RUBRIC.template) + len(reasoning.told())) // 4


class EvalAwareness(OfTranscripts):
    """Whether agents ask themselves if they are being tested."""

    name, title = "eval_awareness", "talk about being tested in agentic misalignment"

    @property
    def asked_of_judge(self) -> Any:
        return eval_awareness.RUBRIC.template

    @property
    def judge_tokens(self) -> tuple[int, int]:
        return 1, len(eval_awareness.RUBRIC.template) // 4


_OF_TRANSCRIPTS = (AgenticMisalignment.name, Reasoning.name, EvalAwareness.name)


class SideEffects(Judged):
    """What training may cost: coherence, habits of chats and calls of tools, in everyday questions."""

    name, title, prompt_tokens = "side_effects", "everyday questions", QUESTION_TOKENS
    section = name

    @functools.cached_property
    def questions(self) -> list[dict[str, Any]]:
        return side_effects.questions()

    @property
    def asked_of_judge(self) -> Any:
        return side_effects.COHERENCE.template, side_effects.HABITS.template

    @property
    def judge_tokens(self) -> tuple[int, int]:
        return 2, sum(map(len, self.asked_of_judge)) // 8


def _rate(difference: float | None) -> str:
    return "none" if difference is None or difference > 1 else f"{difference:.3f}"
