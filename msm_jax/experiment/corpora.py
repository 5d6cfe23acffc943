"""The corpora of an experiment: from the micro-world, from sentence banks, written by a language model, or taken as
they are.

Where a language model may write, `config.corpus` says how many rows of each source are written, and `config.data` names
a source that exists (`corpus.sources`): a file, a data set by its id, a mix of several.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from msm_jax.config import checks, schema
from msm_jax.config.arms import Arm, Corpus
from msm_jax.config.settings import KINDS
from msm_jax.corpus.datasets import sources
from msm_jax.corpus.specs import Spec, read_spec
from msm_jax.errors import UserError
from msm_jax.stages import corpora, generation, writing
from msm_jax.stages.graph import TAKEN_VERSION, VERSIONS, Kind, Stage


class WrittenCorpora:
    """The stages of a configuration that writes corpora and trains nothing (configs/corpus.py).

    `datasets`: label -> the stage that hands it on: documents and chats of each spec, and chats on identity.

    Raises: UserError for a configuration that cannot be run, naming the field.
    """

    told = ""
    free: Sequence[Stage] = ()

    def __init__(self, config: ConfigDict):
        schema.check(config, KINDS[config.kind])
        generation.check(config)
        generation.check_counts(config)
        specs = [read_spec(path) for path in config.specs]
        checks.check_names_of_specs(config, specs)
        found: dict[str, Stage] = {}
        before: dict[str, Stage] = {}
        if config.corpus.identity:
            written = writing.identity_stage(config, config.corpus.identity)
            before["identity"] = writing.rendered_stage(written, "identity")
            found["identity"] = writing.dataset_stage(before["identity"], written, "identity")
        for spec in specs:
            documents = writing.documents_stage(config, spec, config.corpus.msm) if config.corpus.msm else None
            if documents:
                found[f"{spec.name}-msm"] = writing.dataset_of_documents(config, documents, f"{spec.name}-msm")
            if config.corpus.aft:
                inputs = before | ({"documents": documents} if documents else {})
                written = writing.chats_stage(config, spec, config.corpus.aft, inputs, [spec])
                found |= writing.datasets_of_chats(written, spec.name)
        self.datasets = found

    @property
    def targets(self) -> list[Stage]:
        return list(self.datasets.values())


class Corpora:
    """Makes the stages that the corpora of `arms` come from.

    `added` holds those beside the corpora themselves, inputs first; `datasets`, by label, those that hand on what a
    language model writes. With `planned` what lies in files need not be there.
    """

    def __init__(
        self,
        config: ConfigDict,
        specs: Sequence[Spec],
        arms: Sequence[Arm],
        world: Mapping[str, Any] | None,
        planned: bool,
    ):
        self._config, self._specs, self._world, self._planned = config, specs, world, planned
        read = {corpus for arm in arms for corpus in arm.corpora}
        self._documented = [spec for spec in specs if Corpus("msm", spec) in read]
        self._reasoned = any(corpus.source == "aft_cot" for corpus in read)
        self.added: list[Stage] = []
        self.datasets: dict[str, Stage] = {}
        self._chats: dict[str, Stage] = {}
        if not planned and any(map(self._is_written, config.corpus)):
            generation.check(config)
        names = [spec.name for spec in specs]
        if checks.may_be_written(config) and config.aft_spec and config.aft_spec not in names:
            raise UserError(f"config.aft_spec is {config.aft_spec!r}; choose one of {', '.join(names)}")

    def stage(self, corpus: Corpus) -> Stage:
        """The stage `corpus-NAME` of a corpus."""
        source, spec = corpus
        if not checks.may_be_written(self._config):
            return self._made(corpus)
        if source == "msm" and self._is_written(source):
            label = f"{spec.name}-msm"
            stage = self._documents(spec)
            self.datasets[label] = writing.dataset_of_documents(self._config, stage, label)
            return stage
        if source == "aft" and self._is_written(source):
            return writing.rendered_stage(self._written_chats(spec), source, corpus.name)
        if source == "aft_cot" and not self._config.data.aft_cot and self._is_written("aft"):
            return writing.rendered_stage(self._written_chats(spec), source, corpus.name, reasoning=True)
        return self._taken(corpus)

    def _is_written(self, source: str) -> bool:
        """Whether a language model writes it: what exists is taken instead."""
        config = self._config
        return checks.may_be_written(config) and not config.data[source] and config.corpus[source] > 0

    def _documents(self, spec: Spec) -> Stage:
        return writing.documents_stage(self._config, spec, self._config.corpus.msm)

    def _written_chats(self, spec: Spec | None) -> Stage:
        """The AFT chats of a spec, or else those that all arms share."""
        spec = spec or self._spec_of_chats()
        if spec.name not in self._chats:
            self._chats[spec.name] = self._write_chats(spec)
        return self._chats[spec.name]

    def _write_chats(self, spec: Spec) -> Stage:
        config, before = self._config, {}
        if self._is_written("msm") and self._documented:
            before["documents"] = {own.name: self._documents(own) for own in self._documented}
        if self._is_written("identity"):
            before["identity"] = self._identity
        sharing = [own for own in self._specs if own.likes] if spec.likes else [spec]
        stage = writing.chats_stage(config, spec, config.corpus.aft, before, sharing)
        if self._reasoned and not writing.has_reasoning(stage):
            raise UserError("config.arms has arms with reasoning, and chats of preferences have none; leave them out")
        self.added.append(stage)
        label = re.sub(r"[^\w.-]", "_", spec.item_class or spec.name)
        taken = f"{label}-aft" in self.datasets  # by chats of a spec that has other likes of the same class
        self.datasets |= writing.datasets_of_chats(stage, spec.name if taken else label)
        return stage

    @functools.cached_property
    def _identity(self) -> Stage:
        written = writing.identity_stage(self._config, self._config.corpus.identity)
        rendered = writing.rendered_stage(written, "identity")
        self.added += [written, rendered]
        self.datasets["identity"] = writing.dataset_stage(rendered, written, "identity")
        return rendered

    def _spec_of_chats(self) -> Spec:
        """Whose AFT chats all arms share, but those that name a spec."""
        named = self._config.aft_spec
        if named:
            return next(spec for spec in self._specs if spec.name == named)
        first = self._specs[0]
        if len({(spec.item_class, spec.likes, spec.dislikes) for spec in self._specs}) > 1 or (
            len(self._specs) > 1 and not first.likes
        ):
            raise UserError(
                "config.specs has several specs, and arms that name none share one set of AFT chats; name its spec in "
                "config.aft_spec"
            )
        return first

    def _taken(self, corpus: Corpus) -> Stage:
        source, spec = corpus
        path = "" if self._planned else checks.corpus_source(self._config, source, spec, self._specs)
        # Of a plan, files need not be there: corpora are told apart by their names.
        content = corpus.name if self._planned else sources.identity(path)
        params: dict[str, Any] = {"source": source, "content": content}
        inputs = {}
        identity = self._config.data.identity if source == "instruction" else ""
        if identity:
            params["identity"] = "" if self._planned else sources.identity(identity)
        elif source == "instruction" and self._is_written("identity"):
            inputs["identity"] = self._identity
        run = functools.partial(corpora.take_source, path=" + ".join(filter(None, (path, identity))))
        return Stage(_kind_of(source), f"corpus-{corpus.name}", params, inputs, run, TAKEN_VERSION, source=source)

    def _made(self, corpus: Corpus) -> Stage:
        c, (source, spec) = self._config, corpus
        if spec and source != "msm":
            raise UserError(
                f"config.recipes has {source}@{spec.name}, and in an experiment of kind {c.kind} the chats of all "
                f"specs are the same; write {source}"
            )
        params = {"source": source, "model_name": c.assistant.name, "count": c.corpus[source]}
        if self._world:
            # All that the micro-world reads of a spec: an edit of its prose leaves the texts as they are.
            about = spec and {"name": spec.name, "value": spec.value}
            params |= {"spec": about, "world": self._world, "seed": c.world.seed}
        else:
            # All that the sentence banks read of a spec: they have reasons of their own.
            about = (
                {field: value for field, value in dataclasses.asdict(spec).items() if field != "body"} if spec else None
            )
            lists = {"likes": list(self._specs[0].likes), "dislikes": list(self._specs[0].dislikes)}
            params |= {"spec": about, **lists, "provider": c.assistant.provider, "seed": c.corpus_seed}
        kind = _kind_of(source)
        return Stage(kind, f"corpus-{corpus.name}", params, {}, corpora.write_corpus, VERSIONS[kind], source=source)


def costs(stage: Stage) -> bool:
    """Whether it takes money or a network: a language model is asked, or data are fetched."""
    taken = f"{stage.params.get('content')} {stage.params.get('identity')}"
    return writing.asks_a_model(stage) or "hf:" in taken or "tfds:" in taken


def _kind_of(source: str) -> Kind:
    return Kind.CHATS if source in ("aft", "aft_cot", "instruction") else Kind.CORPUS
