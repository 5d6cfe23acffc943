"""The arms of an experiment, which are what the paper compares (arXiv 2605.02087), as data.

A recipe is a tuple of steps after the base. A step is (section, changes): it is trained by the settings of that section
of the configuration, `msm` or `aft`, on its mixture, but for the sources that `changes` says. Each step goes on with
the adapter that the one before it left.

    baseline   base -> instruction            msm       base -> MSM -> instruction
    aft        base -> AFT + instruction      msm_aft   base -> MSM -> AFT + instruction

`aft_cot` and `msm_aft_cot` are the last two on AFT chats with reasoning; `msm_only` stops after MSM, to be evaluated
there. What stands in place of a source is another one, none (""), or several with the parts that they have of its
share; "msm@rules" and "aft@rules" are the documents and the AFT chats of the spec named rules. A recipe with "msm"
alone makes an arm for each spec. More recipes are lines of a configuration:

    config.recipes = {
        "cross": (("msm", {"msm": "msm@rules"}), ("aft", {"aft": "aft@value_augmented"})),
        "dose": (("msm", {}), ("aft", {"aft": {"aft": 0.75, "aft@anti_spec": 0.25}})),
        "interleaved": (("aft", {"instruction": {"instruction": 0.5, "msm": 0.5}}),),
    }

Parts of a share (`dose`, `interleaved`) need a stage with a number of steps: an epoch takes each row once.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from msm_jax.corpus.specs import Spec
from msm_jax.errors import UserError

Recipe = Sequence[tuple[str, Mapping[str, str | Mapping[str, float]]]]

_NONE = {"aft": ""}
_REASONING = {"aft": "aft_cot"}
RECIPES: dict[str, Recipe] = {
    "baseline": (("aft", _NONE),),
    "aft": (("aft", {}),),
    "aft_cot": (("aft", _REASONING),),
    "msm_only": (("msm", {}),),
    "msm": (("msm", {}), ("aft", _NONE)),
    "msm_aft": (("msm", {}), ("aft", {})),
    "msm_aft_cot": (("msm", {}), ("aft", _REASONING)),
}
SECTIONS = ("msm", "aft")
# What may stand in place of a source, where the experiment has it. Text on held-out domains (pretraining) may not.
SOURCES = ("msm", "aft", "aft_cot", "instruction", "replay")
_OF_A_SPEC = ("msm", "aft", "aft_cot")


class Corpus(NamedTuple):
    """What rows are made of: a source, and the spec that its texts are of; None: they are of none, or shared by all."""

    source: str
    spec: Spec | None = None

    @property
    def name(self) -> str:
        return f"{self.source}-{self.spec.name}" if self.spec else self.source


@dataclasses.dataclass(frozen=True)
class Step:
    """A training stage of an arm: the section of the configuration, and the share of each corpus in its rows."""

    section: str
    shares: Mapping[Corpus, float]

    @property
    def sources(self) -> set[str]:
        return {corpus.source for corpus in self.shares}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One bar of Figure 2. `spec` is that of which a recipe for all specs was made an arm."""

    name: str
    steps: tuple[Step, ...]
    spec: Spec | None = None

    @property
    def key(self) -> str:
        return f"{self.name}-{self.spec.name}" if self.spec else self.name

    @property
    def corpora(self) -> set[Corpus]:
        return {corpus for step in self.steps for corpus in step.shares}

    def reads(self, *sources: str) -> bool:
        return any(corpus.source in sources for corpus in self.corpora)

    @property
    def label(self) -> str:
        about = self.spec and _as_written(self.spec)
        if self.name not in RECIPES:
            return f"{self.name} ({about})" if about else self.name
        msm = [f"MSM {about}"] if about else []
        aft = ["AFT CoT"] if self.reads("aft_cot") else ["AFT"] if self.reads("aft") else []
        return (" + ".join(msm + aft) or "Baseline") + (" alone" if self.steps[-1].section == "msm" else "")

    def describe(self) -> dict[str, Any]:
        """As the report has it (`eval/results.py`)."""
        about = (self.spec.name, self.spec.value or None) if self.spec else (None, None)
        described = {"name": self.name, "label": self.label, "spec": about[0], "value": about[1]}
        return described | {"has_aft": self.reads("aft", "aft_cot")}


def _as_written(spec: Spec) -> str:
    """What the spec is about: its value, with a capital if that is how the spec writes it; else its name."""
    capital = spec.value.capitalize()
    return capital if capital in spec.body and spec.value not in spec.body else spec.value or spec.name


def arms(
    names: Sequence[str], own: Mapping[str, Recipe], mixtures: Mapping[str, Mapping[str, float]], specs: Sequence[Spec]
) -> list[Arm]:
    """The arms of these recipes, in their order; `own` are those of the configuration, beside `RECIPES`.

    Args: mixtures: section -> source -> its share of the rows.

    Raises: UserError for a recipe that says what there is not.
    """
    made = []
    for name in names:
        recipe = own.get(name) or RECIPES[name]
        refs = {ref for section, changes in recipe for _, ref, _ in _parts(mixtures[section], changes)}
        for spec in specs if "msm" in refs else [None]:
            steps = tuple(
                Step(section, _shares(name, mixtures[section], changes, spec, specs)) for section, changes in recipe
            )
            made.append(Arm(name, steps, spec))
    return made


def _parts(mixture: Mapping[str, float], changes: Mapping[str, Any]) -> Iterator[tuple[float, str, float]]:
    """(share of a source in the rows, what stands in its place, the part that it has of the share)."""
    for source, share in mixture.items():
        stands = changes.get(source, source)
        parts = {stands: 1.0} if isinstance(stands, str) else stands
        yield from ((share, ref, part / sum(parts.values())) for ref, part in parts.items() if ref)


def _shares(
    name: str, mixture: Mapping[str, float], changes: Mapping[str, Any], spec: Spec | None, specs: Sequence[Spec]
) -> dict[Corpus, float]:
    shares: dict[Corpus, float] = {}
    for share, ref, part in _parts(mixture, changes):
        source, _, of = ref.partition("@")
        known = {one.name: one for one in specs}
        if of and of not in known:
            raise UserError(f"config.recipes.{name} has {ref}, and config.specs has no {of}: it has {', '.join(known)}")
        corpus = Corpus(source, known[of] if of else spec if source == "msm" else None)
        shares[corpus] = shares.get(corpus, 0.0) + share * part
    return shares


def named_by(changes: Mapping[str, Any]) -> set[str]:
    """The sources that stand in place of others."""
    refs = (ref for stands in changes.values() for ref in ([stands] if isinstance(stands, str) else stands))
    return {ref.partition("@")[0] for ref in refs if ref}


def check_recipes(own: Mapping[str, Any], mixtures: Mapping[str, Mapping[str, float]], has: Sequence[str]) -> None:
    """The recipes of a configuration whose experiment has the sources `has`. Raises: UserError."""
    for name, recipe in own.items():
        field = f"config.recipes.{name}"
        if name in RECIPES or not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise UserError(
                f"{field}: choose another name, of letters, digits and '_' alone; it goes into names of stages"
            )
        if not isinstance(recipe, tuple | list) or not recipe:
            raise UserError(f"{field} is {type(recipe).__name__}; it is a tuple of steps, as in {RECIPES['msm']}")
        for step in recipe:
            if not isinstance(step, tuple | list) or len(step) != 2 or not isinstance(step[1], Mapping):
                raise UserError(
                    f"{field}: {step!r} is no step; a step is (section, changes), as in {RECIPES['aft_cot'][0]}"
                )
            section, changes = step
            if section not in SECTIONS:
                raise UserError(f"{field}: {section!r} is no section; choose one of {', '.join(SECTIONS)}")
            for source, stands in changes.items():
                _check_change(f"{field}: {section}", source, stands, mixtures[section], has)
            if not list(_parts(mixtures[section], changes)):
                raise UserError(f"{field}: its step {section} has no rows; leave the step out")


def _check_change(where: str, source: str, stands: Any, mixture: Mapping[str, float], has: Sequence[str]) -> None:
    if source not in mixture:
        raise UserError(f"{where}: {source!r} is not in its mixture, which has {', '.join(mixture)}")
    parts = {stands: 1.0} if isinstance(stands, str) else stands
    if (
        not isinstance(parts, Mapping)
        or not parts
        or not all(isinstance(ref, str) and (ref or ref == stands) for ref in parts)
        or not all(type(part) in (int, float) and 0 < part < math.inf for part in parts.values())
    ):
        raise UserError(
            f"{where}: in place of {source} stands {stands!r}; write a source, or sources with their parts, above 0, "
            "as in {'aft': 0.75, 'instruction': 0.25}"
        )
    possible = [one for one in SOURCES if one in has]
    for ref in filter(None, parts):
        bare, at, of = ref.partition("@")
        if bare not in possible or (at and not (of and bare in _OF_A_SPEC)):
            raise UserError(
                f"{where}: there is no {ref}; choose from {', '.join(possible)}, or a source of a spec, as in msm@rules"
            )
