"""The evaluations of an experiment, as objects that yield stages.

`config.evaluations` names them. An experiment has any number of them, and each asks every model in which an arm ends:
to measure a model after MSM or after the instruction chats is to have an arm that ends there (`config/arms.py`).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ml_collections import ConfigDict

from msm_jax import config as config_lib
from msm_jax.config import nearest
from msm_jax.corpus.specs import Spec
from msm_jax.errors import UserError
from msm_jax.eval import open_qa, values
from msm_jax.microworld import columns, prose, world_text
from msm_jax.stages import corpora, generation, judging, sampling, scoring
from msm_jax.stages.graph import VERSIONS, Kind, Stage
from msm_jax.stages.training import Runtime
from msm_jax.storage import files

_QUESTION_TOKENS = 64  # of a question of two things, as plans take it


@dataclasses.dataclass(frozen=True)
class Models:
    """What the models of an experiment share: the base under their adapters, the tokenizer, how chats are written."""

    base: Stage
    tokenizer: Stage
    chat: Mapping[str, Any]
    runtime: Runtime


class Evaluation(Protocol):
    """Attributes:
    name: what the manifests of its score stages call it.
    answer_length: tokens of an answer that it draws, at most; 0: it draws none.
    drawn: how many answers to how many prompts it draws of a model, and of how many tokens they are (fields of
        `sampler.plan.Workload`); None: none.
    told: what will be measured, in a line, or why nothing is; told before there is anything to pay.
    measures: whether it can say something of these specs; without it there are no stages.
    columns: of the report (`eval/results.py`), one for each rate.
    items: the stage of what is asked, which its score stages read.
    """

    name: str
    answer_length: int
    items: Stage

    @property
    def told(self) -> str: ...

    @property
    def measures(self) -> bool: ...

    @property
    def drawn(self) -> dict[str, int] | None: ...

    @property
    def columns(self) -> list[dict[str, Any]]: ...

    def score(self, models: Models, model: Stage, arm: str, seed: int) -> list[Stage]:
        """The stages that measure one model, inputs first. Summary of the last: {"scores": [one entry a column and
        form]}, where the evaluation has columns; else what its section of the report shows (`eval/sections.py`)."""

    def control(self, models: Models, stated: Mapping[str, Stage]) -> Stage | None:
        """Whether what it measures can be told from the base at all; `stated`: the corpora of the base."""


class ValueGeneralisation:
    """Section 3.1 of the paper: which of two things is preferred, in domains that no training text names."""

    name = "value generalisation"

    def __init__(self, config: ConfigDict, specs: Sequence[Spec], world: Mapping[str, Any] | None):
        self._config, self._specs, self._world = config, specs, world
        self._values = config.world.value_names if world else prose.VALUES
        self.answer_length = config.eval.max_tokens if self.measures else 0

    @property
    def measures(self) -> bool:
        return all(spec.kind == "preferences" and spec.value in self._values for spec in self._specs)

    @property
    def told(self) -> str:
        built = f"{self.name}, on our own pairs for {' and '.join(self._values)}"
        if self.measures:
            return f"evaluation: {built}"
        spec = next(spec for spec in self._specs if spec.kind != "preferences" or spec.value not in self._values)
        meant = nearest(spec.value, self._values) if spec.value else None
        hint = f" (value {spec.value}: did you mean {meant}?)" if meant and meant != spec.value else ""
        return (
            f"NO EVALUATION YET for spec {spec.name}{hint}: models are trained and the report has no rates; built is "
            f"{built}"
        )

    @property
    def drawn(self) -> dict[str, int] | None:
        settings = self._config.eval
        if not self.measures or not settings.samples:
            return None
        items = self._rows()
        if settings.pairs is not None:
            kinds = {(item["kind"], item["value"]) for item in items}
            items = items[: settings.pairs * len(kinds)]
        return {
            "prompts": 2 * len(items),  # in both orders
            "samples": settings.samples,
            "prompt_tokens": _QUESTION_TOKENS,
            "answer_tokens": settings.max_tokens,
            "max_tokens": settings.max_tokens,
        }

    def _rows(self) -> list[dict[str, Any]]:
        if self._world:
            return list(world_text.evaluation_items(corpora.make_world(self._world)))
        return list(prose.evaluation_items(list(self._specs[0].likes), list(self._specs[0].dislikes)))

    @property
    def columns(self) -> list[dict[str, Any]]:
        return columns.of_values(self._values) if self.measures else []

    @functools.cached_property
    def items(self) -> Stage:
        """The pairs that are asked."""
        lists = {"likes": list(self._specs[0].likes), "dislikes": list(self._specs[0].dislikes)}
        params = {"world": self._world} if self._world else lists
        return Stage(Kind.CORPUS, "items", params, {}, corpora.write_evaluation_items, VERSIONS[Kind.CORPUS])

    def score(self, models: Models, model: Stage, arm: str, seed: int) -> list[Stage]:
        return self._score("score", "world" if self._world else "prose", models, model, arm, seed)

    def _score(self, name: str, words: str, models: Models, model: Stage, arm: str, seed: int) -> list[Stage]:
        settings = self._config.eval
        params = {
            "chat": models.chat,
            "generator": words,
            "model_name": self._config.assistant.name,
            "pairs": settings.pairs,
            "samples": settings.samples,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "seed": seed,
        }
        run = functools.partial(scoring.score, runtime=models.runtime)
        return [self._scored(f"{name}-{arm}-s{seed}", params, models, model, run, arm=arm, seed=seed)]

    def control(self, models: Models, stated: Mapping[str, Stage]) -> Stage | None:
        if not self._world:
            return None
        params = {"chat": models.chat, "world": self._world, "agents": self._config.eval.control_agents}
        run = functools.partial(scoring.control, runtime=models.runtime)
        return self._scored("control", params, models, models.base, run, stated=stated)

    def _scored(
        self,
        name: str,
        params: Mapping[str, Any],
        models: Models,
        model: Stage,
        run: Any,
        stated: Any = None,
        **of: Any,
    ) -> Stage:
        inputs = {"model": model, "base": models.base, "tokenizer": models.tokenizer, "items": self.items}
        inputs |= {"stated": stated} if stated else {}
        of |= {"evaluation": "control" if stated else self.name}
        return Stage(Kind.SCORE, name, params, inputs, run, VERSIONS[Kind.SCORE], **of)


class ValuePairs(ValueGeneralisation):
    """Sections 3.1 and 3.2 of the paper on checkpoints: our own pairs for the values of all specs, each asked of all
    arms, so that what a spec moves of another's value is seen; and opinions, for those that have some."""

    name = "values"

    def __init__(self, config: ConfigDict, specs: Sequence[Spec], world: Mapping[str, Any] | None):
        if world:
            raise UserError(
                "config.evaluations has values, whose pairs are of the real world: leave it out of an experiment on "
                "the micro-world"
            )
        super().__init__(config, specs, world)
        self._values = values.VALUES
        self.answer_length = config.eval.max_tokens if self.measures else 0

    @property
    def measures(self) -> bool:
        return bool(self._specs) and all(spec.value in values.VALUES for spec in self._specs)

    @property
    def _sets(self) -> list[str]:
        of_specs = dict.fromkeys(spec.value for spec in self._specs)
        return [name for value in of_specs for name in values.sets_of(value)]

    @property
    def columns(self) -> list[dict[str, Any]]:
        titles = {name: name.replace("_", " ").capitalize() for name in self._sets}
        return (
            [{"name": name, "title": title, "kind": "own"} for name, title in titles.items()] if self.measures else []
        )

    def _rows(self) -> list[dict[str, Any]]:
        return values.rows(self._sets)

    @functools.cached_property
    def items(self) -> Stage:
        params = {"sets": self._sets, "items": files.fingerprint(self._rows(), length=64)}
        return Stage(Kind.CORPUS, "items-values", params, {}, corpora.write_evaluation_items, VERSIONS[Kind.CORPUS])

    def score(self, models: Models, model: Stage, arm: str, seed: int) -> list[Stage]:
        return self._score("score-values", "values", models, model, arm, seed)


class OpenQuestions:
    """Section 4 of the paper: open questions on the model's own conduct, graded by a judge."""

    name = "open_qa"
    columns: Sequence[dict[str, Any]] = ()

    def __init__(self, config: ConfigDict, specs: Sequence[Spec], world: Mapping[str, Any] | None):
        if config.kind != "checkpoint":
            raise UserError(
                f"config.evaluations has open_qa, which needs a judge: it is for experiments of kind checkpoint, and "
                f"this one is of kind {config.kind}; leave it out"
            )
        self._config, self._settings = config, config_lib.to_dict(config.open_qa)
        self.measures = True
        self.answer_length = self._settings["max_tokens"]

    @property
    def told(self) -> str:
        judge = generation.model_name(self._config, judging.judge_of(self._config), judges=True)
        p = self._settings
        answers = len(self._questions) * p["samples"]
        return f"evaluation: open questions, {answers:,} answers a model, each graded {p['repeats']} x by {judge}"

    @property
    def drawn(self) -> dict[str, int]:
        p = self._settings
        return {
            "prompts": len(self._questions),
            "samples": p["samples"],
            "prompt_tokens": 2 * _QUESTION_TOKENS,
            "answer_tokens": p["max_tokens"] // 2,
            "max_tokens": p["max_tokens"],
        }

    @functools.cached_property
    def _questions(self) -> list[dict[str, Any]]:
        rows, most = open_qa.questions(self._config.assistant.name), self._settings["questions"]
        by_dimension: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_dimension.setdefault(row["dimension"], []).append(row)
        return [row for own in by_dimension.values() for row in own[:most]]

    @functools.cached_property
    def items(self) -> Stage:
        params = {"questions": files.fingerprint(self._questions, length=64)}
        run = functools.partial(sampling.write_questions, questions=self._questions)
        return Stage(Kind.CORPUS, "questions-open_qa", params, {}, run, VERSIONS[Kind.CORPUS])

    def score(self, models: Models, model: Stage, arm: str, seed: int) -> list[Stage]:
        p = self._settings
        of = {"arm": arm, "seed": seed, "evaluation": self.name}
        params = {"chat": models.chat, "model_name": self._config.assistant.name, "seed": seed}
        params |= {name: p[name] for name in ("samples", "temperature", "max_tokens")}
        inputs = {"model": model, "base": models.base, "tokenizer": models.tokenizer, "questions": self.items}
        run = functools.partial(sampling.draw, runtime=models.runtime)
        answers = Stage(
            Kind.SAMPLE, f"answers-open_qa-{arm}-s{seed}", params, inputs, run, VERSIONS[Kind.SAMPLE], **of
        )  # fmt: skip
        judged = {
            "evaluation": self.name,
            "model": generation.model_name(self._config, judging.judge_of(self._config), judges=True),
            "rubric": files.fingerprint(open_qa.RUBRIC.template, length=64),
            "dimensions": files.fingerprint(open_qa.dimensions(), length=64),
            "repeats": p["repeats"],
        }
        run = functools.partial(judging.grade, config=self._config)
        inputs = {"questions": self.items, "transcripts": answers}
        verdicts = Stage(
            Kind.VERDICTS, f"verdicts-open_qa-{arm}-s{seed}", judged, inputs, run, VERSIONS[Kind.VERDICTS], **of
        )  # fmt: skip
        return [answers, verdicts]

    def control(self, models: Models, stated: Mapping[str, Stage]) -> Stage | None:
        return None


# By their names in `config.evaluations`; msm_jax/config/settings.py lists them too.
EVALUATIONS = {"value_generalisation": ValueGeneralisation, "values": ValuePairs, "open_qa": OpenQuestions}
