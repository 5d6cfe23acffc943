"""Evaluations of which of two things a model prefers: those that a value decides."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from msm_jax.config import nearest
from msm_jax.corpus.datasets import sources
from msm_jax.corpus.specs import Spec
from msm_jax.errors import UserError
from msm_jax.eval import side_effects, values
from msm_jax.experiment.evaluation import QUESTION_TOKENS, Models
from msm_jax.microworld import columns, prose, world_text
from msm_jax.stages import corpora, sampling, scoring
from msm_jax.stages.graph import VERSIONS, Kind, Stage
from msm_jax.storage import files


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
            "prompt_tokens": QUESTION_TOKENS,
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
        self._more = _further_sets(config.eval.sets)
        super().__init__(config, specs, world)
        self._values = values.VALUES
        self.answer_length = config.eval.max_tokens if self.measures else 0

    @property
    def measures(self) -> bool:
        return bool(self._specs or self._more) and all(spec.value in values.VALUES for spec in self._specs)

    @property
    def _sets(self) -> list[str]:
        of_specs = dict.fromkeys(spec.value for spec in self._specs)
        return [name for value in of_specs for name in values.sets_of(value)]

    @property
    def columns(self) -> list[dict[str, Any]]:
        titles = {name: name.replace("_", " ").capitalize() for name in [*self._sets, *self._more]}
        return (
            [{"name": name, "title": title, "kind": "own"} for name, title in titles.items()] if self.measures else []
        )

    @property
    def told(self) -> str:
        if not self.measures:
            return super().told
        own = f"{len(self._rows()):,} of our own for {' and '.join(self._sets)}" if self._sets else ""
        more = ", ".join(f"{name} of {source}" for name, source in self._more.items())
        return f"evaluation: pairs of two options, {'; '.join(filter(None, (own, more)))}"

    def _rows(self) -> list[dict[str, Any]]:
        return values.rows(self._sets)

    @functools.cached_property
    def items(self) -> Stage:
        params = {"sets": self._sets, "items": files.fingerprint(self._rows(), length=64)}
        if self._more:
            params["more"] = {
                name: {"source": source, "identity": sources.identity(source)} for name, source in self._more.items()
            }
        return Stage(Kind.CORPUS, "items-values", params, {}, corpora.write_evaluation_items, VERSIONS[Kind.CORPUS])

    def score(self, models: Models, model: Stage, arm: str, seed: int) -> list[Stage]:
        return self._score("score-values", "values", models, model, arm, seed)


def _further_sets(given: Sequence[str]) -> dict[str, str]:
    """NAME=SOURCE each -> sources by name. Raises: UserError for what is no such pair, and for a name that is taken."""
    found: dict[str, str] = {}
    taken = {name for value in values.VALUES for name in values.sets_of(value)}
    for each in given:
        name, equals, source = (part.strip() for part in each.partition("="))
        if not equals or not re.fullmatch(r"[a-z]\w*", name):
            raise UserError(
                f"config.eval.sets: {each!r}; write NAME=SOURCE, NAME in small letters, as in opinions=hf:ORG/NAME"
            )
        if name in found or name in taken:
            raise UserError(f"config.eval.sets: {name!r} is a set already; choose another name")
        sources.check(source)
        found[name] = source
    return found


class Capability(ValueGeneralisation):
    """What a model knew: two hundred easy questions of four options, by the log-probability of the letter."""

    name = "capability"
    columns = ({"name": "capability", "title": "Capability", "kind": "capability"},)
    answer_length, drawn, measures = 0, None, True

    def __init__(self, config: ConfigDict, specs: Sequence[Spec], world: Mapping[str, Any] | None):
        if world:
            raise UserError(
                "config.evaluations has capability, whose questions are of the real world: leave it out of an "
                "experiment on the micro-world"
            )
        self._config = config

    @property
    def told(self) -> str:
        return f"evaluation: capability, {len(side_effects.capability())} questions of four options"

    @functools.cached_property
    def items(self) -> Stage:
        questions = side_effects.capability()
        params = {"questions": files.fingerprint(questions, length=64)}
        run = functools.partial(sampling.write_questions, questions=questions)
        return Stage(Kind.CORPUS, "questions-capability", params, {}, run, VERSIONS[Kind.CORPUS])

    def score(self, models: Models, model: Stage, arm: str, seed: int) -> list[Stage]:
        params = {"chat": models.chat, "model_name": self._config.assistant.name}
        run = functools.partial(scoring.capability, runtime=models.runtime)
        return [self._scored(f"score-capability-{arm}-s{seed}", params, models, model, run, arm=arm, seed=seed)]

    def control(self, models: Models, stated: Mapping[str, Stage]) -> Stage | None:
        return None
