"""The arms of an experiment, which are what the paper compares (arXiv 2605.02087).

For each seed the last stage is one mixture of AFT chats and instruction chats, or the instruction chats alone:

    baseline   base -> instruction            msm       base -> MSM -> instruction
    aft        base -> AFT + instruction      msm_aft   base -> MSM -> AFT + instruction

`aft_cot` and `msm_aft_cot` are the last two on AFT chats with reasoning. MSM and AFT train one adapter: the second
stage continues what MSM left.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from msm_jax.corpus.specs import Spec


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What an arm is trained on beside the instruction chats.

    Attributes:
        msm: whether on documents of a spec; then there is an arm for each spec.
        chats: the source of AFT chats; None: on none.
    """

    msm: bool = False
    chats: str | None = None


RECIPES = {
    "baseline": Recipe(),
    "aft": Recipe(chats="aft"),
    "aft_cot": Recipe(chats="aft_cot"),
    "msm": Recipe(msm=True),
    "msm_aft": Recipe(msm=True, chats="aft"),
    "msm_aft_cot": Recipe(msm=True, chats="aft_cot"),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One bar of Figure 2: a recipe, with the spec of its MSM stage if it has one."""

    name: str
    recipe: Recipe
    spec: Spec | None = None

    @property
    def key(self) -> str:
        return f"{self.name}-{self.spec.name}" if self.spec else self.name

    @property
    def label(self) -> str:
        about = self.spec and (self.spec.value or self.spec.name)
        about = about.capitalize() if about == "america" else about
        msm = [f"MSM {about}"] if self.spec else []
        aft = {None: [], "aft": ["AFT"], "aft_cot": ["AFT CoT"]}[self.recipe.chats]
        return " + ".join(msm + aft) or "Baseline"

    def describe(self) -> dict[str, Any]:
        about = (self.spec.name, self.spec.value or None) if self.spec else (None, None)
        return {"name": self.name, "label": self.label, "spec": about[0], "value": about[1]}


def arms(names: Sequence[str], specs: Sequence[Spec]) -> list[Arm]:
    """Those of `config.arms`; of one with MSM, an arm for each spec."""
    return [Arm(name, RECIPES[name], spec) for name in names for spec in (specs if RECIPES[name].msm else [None])]
