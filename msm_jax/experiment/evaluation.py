"""What an evaluation is to an experiment: an object that yields stages, and columns or a section of the report.

`config.evaluations` names them. An experiment has any number of them, and each asks every model in which an arm ends:
to measure a model after MSM or after the instruction chats is to have an arm that ends there (`config/arms.py`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from msm_jax.stages.graph import Stage
from msm_jax.stages.training import Runtime

QUESTION_TOKENS = 64  # of a question of two things, as plans take it


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
