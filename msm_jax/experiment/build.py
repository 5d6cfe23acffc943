"""An experiment: from its configuration to the DAG of stages, which is then run or shown.

All arms (`arms.py`) and seeds share one base, pretrained on the micro-world or a checkpoint that exists.
"""

import collections
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from msm_jax import config as config_lib
from msm_jax.config import checks
from msm_jax.config.arms import Arm, Corpus, Step, arms
from msm_jax.corpus.records import ROLES
from msm_jax.corpus.specs import read_spec
from msm_jax.data.chat import RAW, RAW_NAME
from msm_jax.data.jinja_template import read_override
from msm_jax.errors import UserError
from msm_jax.eval import gold
from msm_jax.experiment.corpora import Corpora, costs
from msm_jax.experiment.evaluation import Models
from msm_jax.experiment.evaluations import EVALUATIONS
from msm_jax.experiment.judged import Judged
from msm_jax.stages import artifacts, base, corpora, generation, graph, packing, report, training, writing
from msm_jax.stages.graph import VERSIONS, Kind, Stage
from msm_jax.storage import files
from msm_jax.storage.mirror import Mirror

# Fields that change how a result is computed, and nothing of it but rounding: a workdir may go on with other values.
RUNTIME_FIELDS = ("mesh", "execution", "expected_tokens", "sampler", "checkpoint", "log", "calls")


class Experiment:
    """The stages of a configuration. `report` is the last; `stages` holds all, inputs first.

    With `planned` it is not to be run: corpora that lie in files need not be there.

    Raises: UserError for a configuration that cannot be run, naming the field.
    """

    def __init__(self, config: ConfigDict, planned: bool = False):
        checks.check_config(config)
        runtime = training.Runtime(
            mesh=config.mesh.to_dict(),
            execution=config.execution.to_dict(),
            checkpoint_every=config.checkpoint.every,
            checkpoint_minutes=config.checkpoint.minutes,
            keep_checkpoints=config.checkpoint.keep,
            log_every=config.log.every,
            rows=config.sampler.rows,
        )
        self._begin(config, planned, runtime)
        self.specs = [read_spec(path) for path in config.specs]
        checks.check_specs(config, self.specs)
        self.arms = self._arms(config.arms)
        self.world = None
        if self.in_world:
            likes, dislikes = list(self.specs[0].likes), list(self.specs[0].dislikes)
            self.world = {**self.plain["world"], "likes": likes, "dislikes": dislikes}
            checks.check_world(config, corpora.make_world(self.world))
        self._make_evaluations()
        self._data()
        self._models()

    def _begin(self, config: ConfigDict, planned: bool, runtime: training.Runtime) -> None:
        self.config, self.planned, self.runtime = config, planned, runtime
        self.plain = config_lib.to_dict(config)
        self.stages: list[Stage] = []
        self._by_hash: dict[str, Stage] = {}
        self.chat = self.plain["chat"]
        if self.chat.get("template") == RAW_NAME and config.kind == "evaluation":
            self.chat = {role: list(getattr(RAW, role)) for role in ROLES}
        elif self.chat.get("template"):
            # The text, not its name: an edited file is another template.
            self.chat = self.chat | {"template": read_override(self.chat["template"])}

    def _make_evaluations(self) -> None:
        self.evaluations = [EVALUATIONS[name](self.config, self.specs, self.world) for name in self.config.evaluations]
        measured = collections.Counter(column["name"] for own in self.evaluations for column in own.columns)
        if twice := [name for name, count in measured.items() if count > 1]:
            raise UserError(f"config.evaluations: two of them measure {twice[0]}; take one of them")

    def _add(self, stage: Stage) -> Stage:
        """The stage, or one of the experiment that makes the same."""
        known = self._by_hash.setdefault(stage.hash, stage)
        if known is stage:
            self.stages.append(stage)
        return known

    def _data(self) -> None:
        """Corpora, tokenizer and packed rows; and the base, where it is what the tokenizer is of."""
        c, plain = self.config, self.plain
        wanted = self._corpora_of(self.arms)
        # What no arm is trained on is not made, for it may have to be paid for. But the tokenizer of the micro-world is
        # the same for all arms: else one more arm would have another base.
        of_tokenizer = self._corpora_of(self._arms(["msm_aft"])) if self.in_world else set()
        made = Corpora(c, self.specs, self.arms, self.world, self.planned)
        stages = {
            corpus: made.stage(corpus) for corpus in sorted(wanted | of_tokenizer, key=lambda corpus: corpus.name)
        }
        for stage in made.added:
            self._add(stage)
        written = {corpus.name: self._add(stage) for corpus, stage in stages.items()}
        self.corpora = {corpus: written[corpus.name] for corpus in stages if corpus in wanted}
        self.datasets = made.datasets
        if self.in_world:
            self.tokenizer = self._add(
                Stage(
                    Kind.CORPUS, "tokenizer", plain["tokenizer"], written, packing.train_tokenizer,
                    VERSIONS[Kind.CORPUS],
                )
            )  # fmt: skip
        else:
            params = {**plain["base"], "model": plain["model"]}
            self.base = self.tokenizer = self._add(
                Stage(Kind.BASE, "base", params, {}, base.find_base, VERSIONS[Kind.BASE])
            )
        self.rows = {corpus: self._packed(corpus, stage) for corpus, stage in self.corpora.items()}

    def _packed(self, corpus: Corpus, written: Stage) -> Stage:
        params = {
            "source": corpus.source,
            "chat": self.chat,
            "model_name": self.config.assistant.name,
            "row_length": self.config.row_length,
            "evaluations": self._prompts(corpus.source),
        }
        inputs = {"corpus": written, "tokenizer": self.tokenizer}
        stage = Stage(
            Kind.ROWS, f"rows-{corpus.name}", params, inputs, packing.pack_rows, VERSIONS[Kind.ROWS],
            source=corpus.source,
        )  # fmt: skip
        return self._add(stage)

    def _arms(self, names: Sequence[str]) -> list[Arm]:
        return arms(names, self.config.recipes, checks.mixtures_of(self.config), self.specs)

    def _corpora_of(self, arms: Sequence[Arm]) -> set[Corpus]:
        """Of which the arms and their base are made."""
        of_base = self.config.pretrain.mixture if self.in_world else ()
        return {corpus for arm in arms for corpus in arm.corpora} | {Corpus(source) for source in of_base}

    def _prompts(self, source: str) -> dict[str, Any] | None:
        """What the evaluations ask, of which no row of this source may hold a long stretch."""
        if source not in ("msm", "aft", "aft_cot", "instruction"):
            return None  # what the base is made of is what it is asked about
        files_ = self.config.generation.evaluations if checks.may_be_written(self.config) else ()
        more = [prompt for path in files_ for prompt in generation.read_prompts(path)]
        if self.in_world:
            return {"world": self.world, "more": more}
        ours = files.fingerprint(packing.evaluation_prompts(None, ()))  # whichever of them are asked
        return {"world": None, "more": more, "ours": ours}

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
    def evaluation(self) -> str:
        """What will be measured, a line for each evaluation."""
        return "\n".join(evaluation.told for evaluation in self.evaluations) or "config.evaluations is empty: no rates"

    @property
    def told(self) -> str:
        """What to tell before anything is paid for."""
        measured = self.evaluations and all(evaluation.measures for evaluation in self.evaluations)
        return self.evaluation if self.datasets or not measured else ""

    def _models(self) -> None:
        """Training, scores and the report."""
        c = self.config
        if self.in_world:
            shares = {Corpus(source): float(share) for source, share in c.pretrain.mixture.items()}
            self.base = self._train(Step("pretrain", shares), ["pretrain"], c.base_seed)
        ends = [(arm.describe(), arm.key, seed, self._trained(arm, seed)) for seed in c.seeds for arm in self.arms]
        stated = {source: self.corpora[Corpus(source)] for source in c.pretrain.mixture} if self.in_world else {}
        self._measure(ends, [arm.describe() for arm in self.arms], stated)

    def _measure(
        self, ends: Sequence[tuple[dict[str, Any], str, int, Stage]], arms: Sequence[dict[str, Any]],
        stated: Mapping[str, Stage],
    ) -> None:  # fmt: skip
        """Scores and the report.

        Args:
          ends: (arm as the report has it, its name in those of stages, seed, the model in which it ends).
          stated: the corpora of the base, for controls.
        """
        models = Models(self.base, self.tokenizer, self.chat, self.runtime)
        scores: dict[str, Stage] = {}
        controls: dict[str, Stage] = {}
        cells: list[dict[str, Any]] = []  # of which arm and seed each of the scores is
        for evaluation in self.evaluations:
            if not evaluation.measures:
                continue
            self._add(evaluation.items)
            for arm, key, seed, model in ends:
                cell = f"{evaluation.name}:{arms.index(arm)}:{seed}"
                for stage in evaluation.score(models, model, key, seed):
                    scores[cell] = self._add(stage)
                about = {"evaluation": evaluation.name, "arm": arm["name"], "spec": arm["spec"]}
                cells.append(about | {"seed": seed, "input": cell})
            if control := evaluation.control(models, stated):
                controls[evaluation.name] = self._add(control)
        params = {
            # What may change while a workdir goes on would be reported as it was at first.
            "config": {field: value for field, value in self.plain.items() if field not in RUNTIME_FIELDS},
            "arms": list(arms),
            "columns": [column for evaluation in self.evaluations for column in evaluation.columns],
            "cells": cells,
        }
        if path := self.plain.get("judge", {}).get("gold"):
            params["gold"] = files.fingerprint(gold.facts(pathlib.Path(path)))  # anew with each further label
        inputs = {
            "controls": controls,  # first: if the base fails one, let it be known
            "scores": scores,
            "rows": {corpus.name: stage for corpus, stage in self.rows.items()},
            "trained": {stage.key: stage for stage in self.stages if stage.kind is Kind.TRAIN},
            "base": self.base,
        }
        self.report = self._add(Stage(Kind.REPORT, "report", params, inputs, report.write, VERSIONS[Kind.REPORT]))

    def _trained(self, arm: Arm, seed: int) -> Stage:
        """The last training stage of an arm; each goes on with the adapter of the one before it."""
        stage = None
        for index, step in enumerate(arm.steps):
            chats = step.sources & {"aft", "aft_cot"}
            name = step.section if step.section != "aft" else "aft" if chats else "instruct"
            # A stage of MSM is named by what it reads, since other arms share it.
            specs = [corpus.spec.name for corpus in step.shares if corpus.spec]
            of = "-".join(specs) if step.section == "msm" and specs else arm.key
            names = [f"{name}-{own}-s{seed}" for own in (of, arm.key, f"{arm.key}-{index}")]
            stage = self._train(step, names, seed, adapter=stage, arm=arm.key)
        return stage

    def _train(self, step: Step, names: list[str], seed: int, adapter: Stage | None = None, arm: str = "") -> Stage:
        """A training stage with the settings of its section of the configuration, and the first of the names that no
        other stage has."""
        settings = self.plain[step.section]
        several = collections.Counter(corpus.source for corpus in step.shares)
        keys = {corpus: corpus.source if several[corpus.source] == 1 else corpus.name for corpus in step.shares}
        steps = settings["steps"]
        if steps is not None:
            # An arm without the AFT chats sees its instruction chats as often as the others do.
            steps = max(1, round(steps * sum(step.shares.values()) / sum(settings["mixture"].values())))
        pretraining = step.section == "pretrain"
        params = {
            "mixture": {keys[corpus]: float(share) for corpus, share in step.shares.items()},
            "steps": steps,
            "batch_size": settings["batch_size"],
            "accumulation": settings["accumulation"],
            "optim": settings["optim"],
            "lora": None if pretraining or not self.config.lora.rank else self.plain["lora"],
            "int8_base": not pretraining and self.config.int8_base,
            "model": self.plain["model"] if pretraining else None,
            "seed": seed,
        }
        inputs: dict[str, Any] = {
            "rows": {keys[corpus]: self.rows[corpus] for corpus in step.shares}, "tokenizer": self.tokenizer
        }  # fmt: skip
        if not pretraining:
            inputs["base"] = self.base
        if adapter:
            inputs["adapter"] = adapter
        taken = {stage.name: stage.hash for stage in self.stages}
        for name in names:
            run = functools.partial(training.train, runtime=self.runtime, label=name)
            about = {"section": step.section, "arm": arm, "seed": seed}
            stage = Stage(Kind.TRAIN, name, params, inputs, run, VERSIONS[Kind.TRAIN], **about)
            if taken.get(name, stage.hash) == stage.hash:
                break
        return self._add(stage)

    def check_base(self, store: str) -> None:
        """That the base, which is in `store`, fits this experiment. Raises: UserError."""
        c = self.config
        if not self.in_world:
            answer = max((own.answer_length for own in self.evaluations if not isinstance(own, Judged)), default=0)
            base.check_base(self.base.folder(store), c.base.path, c.get("row_length", 0), answer, self.chat)
            for own in self.evaluations:
                if isinstance(own, Judged):
                    about = own.name, own.questions, own.answer_length, self.chat, c.assistant.name
                    base.check_questions(self.base.folder(store), c.base.path, *about)

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
            "no corpus is left for a model to write"
        )


def _sources(stage: Stage, store: str) -> list:
    return training.sources_of(stage.params, stage.folders(store))
