"""The stages of models that exist: a base and adapters over it are evaluated, and nothing is trained."""

import functools
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from msm_jax.config import checks
from msm_jax.corpus.specs import read_spec
from msm_jax.errors import UserError
from msm_jax.experiment.build import Experiment
from msm_jax.sampler.adapters import split_adapters
from msm_jax.stages import base, training
from msm_jax.stages.graph import VERSIONS, Kind, Stage
from msm_jax.storage.mirror import Mirror

MESH = {"data": 1, "fsdp": -1, "tensor": 1}  # of adapters that are read; what is asked lies as suits sampling
_BASE = "base"  # the arm of the base alone


class Evaluated(Experiment):
    """As `Experiment`, of a configuration of kind "evaluation"."""

    def __init__(self, config: ConfigDict, planned: bool = False):
        checks.check_evaluation(config)
        runtime = training.Runtime(mesh=MESH, execution={}, rows=config.sampler.rows)
        self._begin(config, planned, runtime)
        self.specs = [read_spec(path) for path in config.specs]
        self.world, self.corpora, self.rows, self.datasets, self.arms = None, {}, {}, {}, []
        self._make_evaluations()
        params = {**self.plain["base"], "model": self.plain["model"]}
        self.base = self.tokenizer = self._add(
            Stage(Kind.BASE, "base", params, {}, base.find_base, VERSIONS[Kind.BASE])
        )
        models = {_BASE: self.base} | {
            name: self._adapter(name, path) for name, path in split_adapters(config.adapters).items()
        }
        arms = [{"name": name, "label": name, "has_aft": False, "spec": None, "value": None} for name in models]
        ends = [
            (arm, name, seed, models[name]) for seed in config.seeds for arm, name in zip(arms, models, strict=True)
        ]
        self._measure(ends, arms, {})

    def _adapter(self, name: str, path: str) -> Stage:
        if not re.fullmatch(r"\w[\w.-]*", name) or name == _BASE:
            raise UserError(
                f"config.adapters: {name!r} names stages; use letters, digits, '_', '.' and '-', and another word than "
                f"{_BASE!r}"
            )
        identity = path if self.planned else base.identity_of_adapter(path, self.config.base)
        params: Mapping[str, Any] = {"adapter": identity}
        asked = {"chat": self.chat, "who": self.config.assistant.name}
        run = functools.partial(base.find_adapter, path=path, runtime=self.runtime, **asked)
        return self._add(
            Stage(Kind.ADAPTER, f"adapter-{name}", params, {"base": self.base}, run, VERSIONS[Kind.ADAPTER])
        )

    def decoded_batches(self, store: str, mirror: Mirror | None = None) -> list[str]:
        return []

    def estimate(self, store: str) -> str:
        return "nothing is trained"
