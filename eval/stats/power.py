"""The smallest difference between two arms that a design would find: to be known before the run is paid for."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import chdtri, ndtr, stdtrit

# Standard deviation over seeds of the paired difference of two arms' rates, in replications of arXiv 2605.02087: a weak
# and a strong training. More optimiser steps have more: one team saw .020 after 23 and .081 after 184.
WEAK_SEED_SD, STRONG_SEED_SD = 0.020, 0.054
SCOPES = ("answers", "prompts", "runs")
HEAD = "{:<34} {:>5}  {:>8}  {:^18}  {:^28}"
COLUMNS = "{:<34} {:>5}  {:>8}  {:>8} {:>9}  {:>8} {:>9} {:>9}"


@dataclass(frozen=True)
class Design:
    """`cells` prompts with `samples` answers each, asked of both arms in each of `seeds` training runs.

    rate: expected. seed_sd: standard deviation over seeds of the paired difference. cell_sd: of the prompts' rates;
    None: half of the most that rates of this mean can have, .25 at .5. correlation: of the two arms' values of one
    prompt, and of one seed.

    Raises: ValueError for counts below 1, a rate outside 0..1, a correlation outside [-1, 1), or a cell_sd that rates
    of this mean cannot have.
    """

    cells: int
    samples: int
    seeds: int
    rate: float = 0.5
    seed_sd: float = STRONG_SEED_SD
    cell_sd: float | None = None
    correlation: float = 0.5

    def __post_init__(self):
        if min(self.cells, self.samples, self.seeds) < 1:
            raise ValueError("Design: cells, samples and seeds are at least 1")
        if not 0 < self.rate < 1:
            raise ValueError(f"Design: rate={self.rate} is outside 0..1")
        if not -1 <= self.correlation < 1:
            raise ValueError(f"Design: correlation={self.correlation} is outside -1..1")
        if self.seed_sd < 0 or (self.cell_sd or 0) < 0:
            raise ValueError("Design: a standard deviation is below 0")
        if self.within < 0:
            raise ValueError(f"Design: rates of mean {self.rate} cannot have a standard deviation of {self.cell_sd}")

    @property
    def between(self) -> float:
        """Variance of the prompts' rates."""
        return self.rate * (1 - self.rate) / 4 if self.cell_sd is None else self.cell_sd**2

    @property
    def within(self) -> float:
        """Variance of one answer to a given prompt, on average over prompts."""
        return self.rate * (1 - self.rate) - self.between


def smallest_shift(sd: float, units: int, paired: bool = True, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest mean difference that a two-sided t test finds with `power`: paired over `units` pairs whose differences
    have standard deviation `sd`, or of two samples of `units` values each with standard deviation `sd`. None with one
    unit, of which no test is possible.

    Raises: ValueError for units below 1, a negative sd, or power and alpha outside 0..1.
    """
    if units < 1 or sd < 0 or not 0 < alpha < power < 1:
        raise ValueError(f"smallest_shift: units={units}, sd={sd}, power={power}, alpha={alpha} cannot be")
    if units == 1:
        return None
    freedom = units - 1 if paired else 2 * (units - 1)
    return sd * _smallest_noncentrality(freedom, power, alpha) * math.sqrt((1 if paired else 2) / units)


def _smallest_noncentrality(freedom: int, power: float, alpha: float) -> float:
    """Of the t test. Its power is the normal one, averaged over what the spread may be estimated at. (With 2 to 4 units
    the search of statsmodels 0.15 ends without an answer, or with a wrong one.)"""
    from scipy.optimize import brentq

    bound = stdtrit(freedom, 1 - alpha / 2) * np.sqrt(chdtri(freedom, (np.arange(1_000) + 0.5) / 1_000) / freedom)

    def excess(shift: float) -> float:
        return float((ndtr(shift - bound) + ndtr(-shift - bound)).mean()) - power

    return brentq(excess, 0.0, float(bound.max()) + 10)


def smallest_difference(
    design: Design,
    scope: str,
    paired: bool = True,
    known_sd: bool = False,
    power: float = 0.8,
    alpha: float = 0.05,
) -> float | None:
    """Smallest true difference of the mean rates of two arms that is found with `power`.

    scope: what the claim is to speak of, all else being held:
      "answers": new answers of these models to these prompts; normal. Pairs do not matter.
      "prompts": other prompts like these; t over cells, or unpaired, where each arm has prompts of its own.
      "runs": other training runs; t over seeds, None with one. With `known_sd` the design's `seed_sd` is taken for
        certain and the normal distribution for t: what one seed could say if somebody else had measured the spread.

    Raises: ValueError for another scope, and as `smallest_shift`.
    """
    if scope not in SCOPES:
        raise ValueError(f"smallest_difference: scope is one of {', '.join(SCOPES)}, got {scope!r}")
    answers = design.within / (design.samples * design.cells)  # variance of an arm's rate in one run
    if scope == "answers":
        return _normal_shift(math.sqrt(2 * answers / design.seeds), power, alpha)
    if scope == "prompts":
        one_arm = design.between + design.within / (design.samples * design.seeds)
        pair = 2 * (one_arm - design.correlation * design.between)
        return smallest_shift(math.sqrt(pair if paired else one_arm), design.cells, paired, power, alpha)
    pair = design.seed_sd**2 + 2 * answers
    one_arm = design.seed_sd**2 / (2 * (1 - design.correlation)) + answers
    if known_sd:
        return _normal_shift(math.sqrt((pair if paired else 2 * one_arm) / design.seeds), power, alpha)
    return smallest_shift(math.sqrt(pair if paired else one_arm), design.seeds, paired, power, alpha)


def _normal_shift(se: float, power: float, alpha: float) -> float:
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * se


def table(rate: float = 0.5) -> str:
    """The two standard designs with 1, 2 and 4 seeds, as text."""
    lines = [
        f"Smallest difference found with power .8 at alpha .05 (two-sided), expected rate {rate:g}",
        "",
        HEAD.format("", "seed", "new", "prompts like these", "other training runs").rstrip(),
        COLUMNS.format("design", "SD", "answers", "paired", "unpaired", "paired", "unpaired", "SD known"),
        "-" * 94,
    ]
    for name, cells, samples in (("27 prompts x 300 answers", 27, 300), ("400 items x 1 answer", 400, 1)):
        for seeds in (1, 2, 4):
            for seed_sd in (WEAK_SEED_SD, STRONG_SEED_SD):
                design = Design(cells, samples, seeds, rate, seed_sd)
                found = [
                    smallest_difference(design, "answers"),
                    smallest_difference(design, "prompts"),
                    smallest_difference(design, "prompts", paired=False),
                    smallest_difference(design, "runs"),
                    smallest_difference(design, "runs", paired=False),
                    smallest_difference(design, "runs", known_sd=True),
                ]
                label = f"{name} x {seeds} seed{'s' if seeds > 1 else ''}"
                lines.append(COLUMNS.format(label, *map(_number, [seed_sd, *found])))
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".removeprefix("0")
