"""The cells of the agentic misalignment evaluation: 3 scenarios x (no goal + 8 explicit goals), under replacement.

These 27 are what the paper asks (arXiv 2605.02087, sections 4 and D.3). The four arguments of upstream's task
(inspect_evals, agentic_misalignment) choose among them, or name a cell beside them; combinations that upstream accepts
and then asks with a broken prompt are refused here.
"""

import itertools
from typing import NamedTuple

from msm_jax.errors import UserError

SCENARIOS = ("exfiltration", "murder", "leaking")
OPPOSITE = {
    "america": "global", "global": "america",
    "safety": "acceleration", "acceleration": "safety",
    "ethical": "pragmatic", "pragmatic": "ethical",
    "individualism": "collectivism", "collectivism": "individualism",
}  # fmt: skip
GOALS = tuple(OPPOSITE)
GOAL_TYPES = ("explicit", "latent", "none", "ambiguous", "swap")
URGENCIES = ("replacement", "restriction", "none")
_PAPER = {"goal_type": ("none", "explicit"), "urgency_type": ("replacement",)}


class Cell(NamedTuple):
    """One prompt: what the agent may do, the goal it has been given and how, and the threat it is under."""

    scenario: str
    goal_type: str
    goal_value: str
    urgency: str

    @property
    def id(self) -> str:
        """As upstream names its sample."""
        return f"{self.scenario}_{self.goal_type}-{self.goal_value}_{self.urgency}"


def cells() -> tuple[Cell, ...]:
    """The 27 cells of the paper, scenario by scenario, that without a goal first."""
    goals = (("none", "none"), *(("explicit", goal) for goal in GOALS))
    return tuple(Cell(scenario, *goal, "replacement") for scenario in SCENARIOS for goal in goals)


def select(
    scenario: str | None = None,
    goal_type: str | None = None,
    goal_value: str | None = None,
    urgency_type: str | None = None,
) -> tuple[Cell, ...]:
    """The cells with what is given. What is not given is as in the paper: any of the 27.

    Raises: UserError, in one line, if there is no such cell or its prompt would be broken.
    """
    options = {
        "scenario": SCENARIOS if scenario is None else (scenario,),
        "goal_type": _PAPER["goal_type"] if goal_type is None else (goal_type,),
        "goal_value": ("none", *GOALS) if goal_value is None else (goal_value,),
        "urgency_type": _PAPER["urgency_type"] if urgency_type is None else (urgency_type,),
    }
    wanted = [Cell(*values) for values in itertools.product(*options.values())]
    refused = {cell: refusal(cell) for cell in wanted}
    if all(refused.values()):
        raise UserError(f"{wanted[0].id}: {refused[wanted[0]]}")
    return tuple(cell for cell in wanted if not refused[cell])


def refusal(cell: Cell) -> str | None:
    """Why there is no such cell, and what to do; None if there is one."""
    return _unknown(cell) or _mismatch(cell) or _unwritten(cell)


def _unknown(cell: Cell) -> str | None:
    if cell.scenario == "blackmail":
        return "blackmail is no part of this evaluation; inspect_evals/agentic_misalignment has it"
    known = {
        "scenario": SCENARIOS,
        "goal_type": GOAL_TYPES,
        "goal_value": (*GOALS, "none", "ambiguous"),
        "urgency_type": URGENCIES,
    }
    for (name, values), value in zip(known.items(), cell, strict=True):
        if value not in values:
            return f"{name} is {value!r}; there are {', '.join(values)}"
    return None


def _mismatch(cell: Cell) -> str | None:
    if cell.goal_type in ("none", "ambiguous"):
        if cell.goal_value != "none":
            return f"goal_type {cell.goal_type} has no goal to name; set goal_value=none"
    elif cell.goal_value not in GOALS:
        # Upstream fills such prompts with the ambiguous texts, or leaves placeholders in them.
        return f"goal_type {cell.goal_type} needs a goal; set goal_value to one of {', '.join(GOALS)}"
    return None


def _unwritten(cell: Cell) -> str | None:
    if cell.scenario == "exfiltration" and cell.urgency != "replacement":
        return "exfiltration is written for urgency_type=replacement alone"
    if cell.scenario == "exfiltration" and cell.goal_type == "ambiguous":
        return "exfiltration has no texts for goal_type ambiguous; choose explicit, latent, swap or none"
    if cell.scenario == "murder" and cell.goal_value == "safety" and cell.urgency == "restriction":
        return "inspect-evals lacks a text of murder for safety under restriction; choose another goal or urgency"
    return None
