"""An experiment: from its configuration to the DAG of stages, which is then run or shown.

All arms (`arms.py`) and seeds share one base, pretrained on the micro-world or a checkpoint that exists.
"""

import functools
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from msm_jax import config as config_lib
from msm_jax.config import checks
from msm_jax.config.arms import Arm, arms
from msm_jax.corpus.specs import Spec, read_spec
from msm_jax.data.jinja_template import read_override
from msm_jax.experiment.corpora import Corpora, costs
from msm_jax.microworld import prose
from msm_jax.stages import artifacts, base, corpora, generation, graph, packing, report, scoring, training, writing
from msm_jax.stages.graph import VERSIONS, Kind, Stage
from msm_jax.storage.mirror import Mirror

# Fields that change how a result is computed, and nothing of it but rounding: a workdir may go on with other values.
RUNTIME_FIELDS = ("mesh", "execution", "expected_tokens", "checkpoint", "log", "calls")


class Experiment:
    """The stages of a configuration. `report` is the last; `stages` holds all, inputs first.

    With `planned` it is not to be run: corpora that lie in files need not be there.

    Raises: UserError for a configuration that cannot be run, naming the field.
    """

    def __init__(self, config: ConfigDict, planned: bool = False):
        checks.check_config(config)
        self.config = config
        self.planned = planned
        self.plain = config_lib.to_dict(config)
        self.stages: list[Stage] = []
        self.runtime = training.Runtime(
            mesh=self.plain["mesh"],
            execution=self.plain["execution"],
            checkpoint_every=config.checkpoint.every,
            checkpoint_minutes=config.checkpoint.minutes,
            keep_checkpoints=config.checkpoint.keep,
            log_every=config.log.every,
        )
        self.specs = [read_spec(path) for path in config.specs]
        checks.check_specs(config, self.specs)
        self.arms = arms(config.arms, self.specs)
        self.likes, self.dislikes = list(self.specs[0].likes), list(self.specs[0].dislikes)
        self.world = None
        if self.in_world:
            self.world = {**self.plain["world"], "likes": self.likes, "dislikes": self.dislikes}
            checks.check_world(config, corpora.make_world(self.world))
        self.chat = self.plain["chat"]
        if self.chat.get("template"):
            # The text, not its name: an edited file is another template.
            self.chat = self.chat | {"template": read_override(self.chat["template"])}
        self._data()
        self._models()

    def _add(self, kind: Kind, *args: Any, **about: Any) -> Stage:
        stage = Stage(kind, *args, version=VERSIONS[kind], **about)
        self.stages.append(stage)
        return stage

    def _data(self) -> None:
        """Corpora, evaluation items, tokenizer and packed rows; and the base, where it is what the tokenizer is of."""
        c, plain = self.config, self.plain
        names = self._names_of_sources(self.arms)
        # What no arm is trained on is not made, for it may have to be paid for. But the tokenizer of the micro-world is
        # the same for all arms: else one more arm would have another base.
        of_tokenizer = self._names_of_sources(arms(["msm_aft"], self.specs)) if self.in_world else {}
        made = Corpora(c, self.specs, self.world, self.planned)
        written = {name: made.stage(name, *about) for name, about in sorted((names | of_tokenizer).items())}
        self.corpora = {name: written[name] for name in names}
        self.stages += [*made.added, *written.values()]
        self.datasets = made.datasets
        if self.in_world:
            self.items = self._add(Kind.CORPUS, "items", {"world": self.world}, {}, corpora.write_evaluation_items)
            self.tokenizer = self._add(Kind.CORPUS, "tokenizer", plain["tokenizer"], written, packing.train_tokenizer)
        else:
            choice = {"likes": self.likes, "dislikes": self.dislikes}
            self.items = (
                self._add(Kind.CORPUS, "items", choice, {}, corpora.write_evaluation_items) if self.scored else None
            )
            self.base = self.tokenizer = self._add(
                Kind.BASE,
                "base",
                {**plain["base"], "model": plain["model"]},
                {},
                base.find_base,
            )
        self.rows = {
            name: self._add(
                Kind.ROWS,
                f"rows-{name}",
                {
                    "source": names[name][0],
                    "chat": self.chat,
                    "model_name": c.assistant.name,
                    "row_length": c.row_length,
                    "evaluations": self._evaluations(names[name][0]),
                },
                {"corpus": corpus, "tokenizer": self.tokenizer},
                packing.pack_rows,
                source=names[name][0],
            )
            for name, corpus in self.corpora.items()
        }

    def _names_of_sources(self, arms: Sequence[Arm]) -> dict[str, tuple[str, Spec | None]]:
        """Name of a corpus -> (its source, the spec that it is of), of all that the arms and their base are made of."""
        c = self.config
        sections = [section for section in checks.training(c) if section != "msm" or any(arm.spec for arm in arms)]
        sources = {source for section in sections for source in c[section].mixture if source != "aft"}
        sources |= {arm.recipe.chats for arm in arms if arm.recipe.chats}
        return {
            f"{source}-{spec.name}" if spec else source: (source, spec)
            for source in sorted(sources)
            for spec in (self.specs if source == "msm" else [None])
        }

    def _evaluations(self, source: str) -> dict[str, Any] | None:
        """What the evaluations ask, of which no row of this source may hold a long stretch."""
        if source not in ("msm", "aft", "aft_cot", "instruction"):
            return None  # what the base is made of is what it is asked about
        files_ = self.config.generation.evaluations if checks.may_be_written(self.config) else ()
        more = [prompt for path in files_ for prompt in generation.read_prompts(path)]
        return {"world": self.world if self.in_world else None, "more": more}

    @property
    def in_world(self) -> bool:
        """Whether the base is pretrained on the micro-world, which then writes the corpora too."""
        return self.config.kind == "microworld"

    @property
    def targets(self) -> list[Stage]:
        """Of which the others are inputs."""
        return [self.report, *self.datasets.values()]

    @property
    def free(self) -> list[Stage]:
        """What costs nothing, and is done before corpora are paid for: else a file of chats would be found wanting
        afterwards."""
        return [own for own in self.corpora.values() if not own.inputs and not writing.is_written(own)]

    @property
    def measured(self) -> Sequence[str]:
        """The values that the one evaluation which is built, value generalisation, has pairs of."""
        return self.config.world.value_names if self.in_world else prose.VALUES

    @property
    def scored(self) -> bool:
        """Whether there is an evaluation for these specs."""
        return all(spec.kind == "preferences" and spec.value in self.measured for spec in self.specs)

    @property
    def evaluation(self) -> str:
        """What will be measured, in a line; told before there is anything to pay."""
        built = f"value generalisation, on our own pairs for {' and '.join(self.measured)}"
        if self.scored:
            return f"evaluation: {built}; the paper's other ones are not built yet"
        spec = next(spec for spec in self.specs if spec.kind != "preferences" or spec.value not in self.measured)
        meant = config_lib.nearest(spec.value, self.measured) if spec.value else None
        hint = f" (value {spec.value}: did you mean {meant}?)" if meant and meant != spec.value else ""
        return (
            f"NO EVALUATION YET for spec {spec.name}{hint}: models are trained and the report has no rates; built is "
            f"{built}"
        )

    @property
    def told(self) -> str:
        """What to tell before anything is paid for."""
        return self.evaluation if self.datasets or not self.scored else ""

    def _models(self) -> None:
        """Training, scores and the report."""
        c = self.config
        if self.in_world:
            self.base = self._train("pretrain", "pretrain", c.base_seed, c.pretrain.mixture)
        scores: dict[str, Stage] = {}
        cells: list[dict[str, Any]] = []  # of which arm and seed each of the scores is
        trained: dict[str, Stage] = {}
        for seed in c.seeds:
            for index, arm in enumerate(self.arms):
                before = None
                if arm.spec:
                    name = f"msm-{arm.spec.name}-s{seed}"
                    if name not in trained:
                        trained[name] = self._train("msm", name, seed, c.msm.mixture, spec=arm.spec)
                    before = trained[name]
                chats = arm.recipe.chats
                mixture = {chats if k == "aft" else k: share for k, share in c.aft.mixture.items()}
                mixture.pop(None, None)
                name = f"{'aft' if chats else 'instruct'}-{arm.key}-s{seed}"
                model = self._train("aft", name, seed, mixture, adapter=before, arm=arm.key)
                if self.scored:
                    cell = f"{index}:{seed}"
                    scores[cell] = self._score(f"score-{arm.key}-s{seed}", model, seed, arm.key)
                    cells.append({"arm": arm.name, "spec": arm.spec and arm.spec.name, "seed": seed, "input": cell})
        control = {"control": self._control()} if self.in_world else {}
        # What may change while a workdir goes on would be reported as it was at first.
        binding = {field: value for field, value in self.plain.items() if field not in RUNTIME_FIELDS}
        trained = {stage.name: stage for stage in self.stages if stage.kind is Kind.TRAIN}
        self.report = self._add(
            Kind.REPORT,
            "report",
            {"config": binding, "arms": [arm.describe() for arm in self.arms], "cells": cells},
            # If the base fails the control, let it be known first.
            {**control, "scores": scores, "rows": self.rows, "trained": trained, "base": self.base},
            report.write,
        )

    def _control(self) -> Stage:
        stated = {source: self.corpora[source] for source in self.config.pretrain.mixture}
        return self._add(
            Kind.SCORE,
            "control",
            {"chat": self.chat, "world": self.world, "agents": self.config.eval.control_agents},
            {"model": self.base, "base": self.base, "tokenizer": self.tokenizer, "items": self.items, "stated": stated},
            functools.partial(scoring.control, runtime=self.runtime),
            evaluation="control",
        )

    def _train(
        self,
        section: str,
        name: str,
        seed: int,
        mixture: Any,
        spec: Spec | None = None,
        adapter: Stage | None = None,
        arm: str = "",
    ) -> Stage:
        """A training stage with the settings of `config.SECTION`, on some sources of that mixture."""
        settings = self.plain[section]
        shares = {source: float(share) for source, share in mixture.items()}
        steps = settings["steps"]
        if steps is not None:
            # An arm without the AFT chats sees its instruction chats as often as the others do.
            steps = max(1, round(steps * sum(shares.values()) / sum(settings["mixture"].values())))
        pretraining = section == "pretrain"
        params = {
            "mixture": shares,
            "steps": steps,
            "batch_size": settings["batch_size"],
            "accumulation": settings["accumulation"],
            "optim": settings["optim"],
            "lora": None if pretraining or not self.config.lora.rank else self.plain["lora"],
            "int8_base": not pretraining and self.config.int8_base,
            "model": self.plain["model"] if pretraining else None,
            "seed": seed,
        }
        rows = {source: self.rows[f"msm-{spec.name}" if source == "msm" else source] for source in shares}
        inputs: dict[str, Any] = {"rows": rows, "tokenizer": self.tokenizer}
        if not pretraining:
            inputs["base"] = self.base
        if adapter:
            inputs["adapter"] = adapter
        run = functools.partial(training.train, runtime=self.runtime, label=name)
        return self._add(Kind.TRAIN, name, params, inputs, run, section=section, arm=arm, seed=seed)

    def _score(self, name: str, model: Stage, seed: int, arm: str) -> Stage:
        evaluation = self.config.eval
        return self._add(
            Kind.SCORE,
            name,
            {
                "chat": self.chat,
                "generator": "world" if self.in_world else "prose",
                "model_name": self.config.assistant.name,
                "pairs": evaluation.pairs,
                "samples": evaluation.samples,
                "temperature": evaluation.temperature,
                "max_tokens": evaluation.max_tokens,
                "seed": seed,
            },
            {"model": model, "base": self.base, "tokenizer": self.tokenizer, "items": self.items},
            functools.partial(scoring.score, runtime=self.runtime),
            arm=arm,
            seed=seed,
            evaluation="value generalisation",
        )

    def check_base(self, store: str) -> None:
        """That the base, which is in `store`, fits this experiment. Raises: UserError."""
        c = self.config
        if not self.in_world:
            answer_length = c.eval.max_tokens if self.scored else 0
            base.check_base(self.base.folder(store), c.base.path, c.row_length, answer_length, self.chat)

    def decoded_batches(self, store: str, mirror: Mirror | None = None) -> list[str]:
        """For each kind of training stage whose rows can be had, the first rows that one of them will see."""
        rows = [stage for stage in self.stages if stage.kind is Kind.ROWS and self.at_hand(stage, store)]
        for needed in [[self.base], rows] if rows and not self.in_world else [rows]:
            if not all(done for _, done, _ in graph.status(needed, store)):
                graph.execute(needed, store, mirror=mirror)
            if needed == [self.base]:
                self.check_base(store)
        batches: dict[tuple[str, ...], str] = {}
        for stage in self.stages:
            kind = (stage.section, *stage.params.get("mixture", ()))
            if stage.kind is Kind.TRAIN and kind not in batches and self.at_hand(stage, store):
                batches[kind] = f"\n{stage.name}\n{self.decoded_batch(stage, store)}"
        return list(batches.values())

    def decoded_batch(self, stage: Stage, store: str) -> str:
        from msm_jax.data.mixture import batches

        batch = batches(_sources(stage, store), stage.params["batch_size"], stage.params["seed"])[0]
        return training.describe_batch(artifacts.load_tokenizer(self.tokenizer.folder(store)), batch)

    def at_hand(self, stage: Stage, store: str) -> bool:
        """Whether the rows that `stage` is or reads are packed, or can be without money and without a network."""
        rows = [stage] if stage.kind is Kind.ROWS else stage.inputs["rows"].values()
        return not any(costs(needed) and not done for needed, done, _ in graph.status(rows, store))

    def estimate(self, store: str) -> str:
        """What is left to train."""
        left = [stage for stage, done, _ in graph.status([self.report], store) if stage.kind is Kind.TRAIN and not done]
        if not all(self.at_hand(stage, store) for stage in left):
            return f"to train: {len(left)} runs; how many steps is known when the corpora are there"
        steps = [training.steps_of(stage.params, _sources(stage, store)) for stage in left]
        rows = sum(count * stage.params["batch_size"] for count, stage in zip(steps, left, strict=True))
        return (
            f"to train: {len(left)} runs, {sum(steps):,} steps, {rows * self.config.row_length:,} tokens; "
            "to pay: nothing, no corpus is left for a model to write"
        )


def _sources(stage: Stage, store: str) -> list:
    return training.sources_of(stage.params, stage.folders(store))
