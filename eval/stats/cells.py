"""Rates over cells: prompts that are sampled many times each, as the 27 of agentic misalignment.

The mean over cells is unweighted: each prompt counts once, however many of its answers were judged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from msm_jax.eval.stats.estimate import Estimate, counts, no_interval, normal, student
from msm_jax.eval.stats.paired import PairedDifference, correlation


@dataclass(frozen=True)
class CellMean:
    """`these` speaks of new answers to the same prompts, `like_these` of other prompts of the kind. `rates` has None
    for a cell without a judged answer; `missing` names those: the mean is over the others only."""

    these: Estimate
    like_these: Estimate
    rates: tuple[float | None, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class CellDifference:
    """First minus second, cell by cell. `missing` names the cells that either lacks."""

    these: Estimate
    like_these: PairedDifference
    missing: tuple[str, ...]


@dataclass(frozen=True)
class MissingBounds:
    """`estimate` is the rate among the judged (None if a cell has none); `low` and `high` are what it would be had all
    missing judgements been 0, or all 1. They are bounds, not a confidence interval."""

    estimate: float | None
    low: float
    high: float
    judged: int
    missing: int
    speaks_of: str


def cell_mean(
    successes: Sequence[int], totals: Sequence[int], names: Sequence[str] | None = None, confidence: float = 0.95
) -> CellMean:
    """Unweighted mean of the cells' rates. successes[i] of totals[i] judged answers of cell i; names[i] names it.

    these: the adjusted Wald interval of a linear function of binomial proportions (Price & Bonett 2004, Computational
    Statistics & Data Analysis 45:449), so cells are strata. like_these: Student t over the cells' rates, k - 1
    degrees of freedom, clipped to [0, 1]; no interval where all rates are equal or with one cell. Where the cells'
    rates are skewed it misses its nominal coverage: see docs/statistics.md.

    Raises: ValueError for counts that cannot be, and if no cell has a judged answer.
    """
    done, n = counts("cell_mean", successes, totals)
    seen, missing = _seen("cell_mean", n > 0, names)
    done, n = done[seen], n[seen]
    mean, half, _ = student(done / n, confidence)
    low, high = _linear(done, n, np.full(done.size, 1 / done.size), confidence)
    told = _told(done.size, missing)
    these = Estimate(mean, max(0.0, low), min(1.0, high), f"new answers to these {told}, of the same trained models")
    speaks_of = f"other prompts like these {told}, of the same trained models"
    if half is None:
        like_these = Estimate(mean, None, None, f"{speaks_of}: {no_interval(done.size, 'rates')}")
    else:
        like_these = Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), speaks_of)
    every = [float(rate) for rate in done / n]
    return CellMean(these, like_these, tuple(every.pop(0) if here else None for here in seen), missing)


def cell_difference(
    successes: Sequence[int],
    totals: Sequence[int],
    other_successes: Sequence[int],
    other_totals: Sequence[int],
    names: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> CellDifference:
    """Mean of the differences of the cells' rates, first minus second; the cells of both are the same prompts.

    Intervals as those of `cell_mean`: over answers, with the cells as strata, and paired t over the differences.

    Raises: ValueError for counts that cannot be, different numbers of cells, and if no cell was judged in both.
    """
    done, n = counts("cell_difference", successes, totals)
    other, other_n = counts("cell_difference", other_successes, other_totals)
    if n.size != other_n.size:
        raise ValueError(f"cell_difference: {n.size} cells but {other_n.size} to pair them with")
    seen, missing = _seen("cell_difference", (n > 0) & (other_n > 0), names)
    done, n, other, other_n = done[seen], n[seen], other[seen], other_n[seen]
    first, second, k = done / n, other / other_n, n.size
    weights = np.repeat([1 / k, -1 / k], k)
    low, high = _linear(np.concatenate([done, other]), np.concatenate([n, other_n]), weights, confidence)
    told = _told(k, missing)
    difference, half, p_value = student(first - second, confidence)
    around = (None, None) if half is None else (max(-1.0, difference - half), min(1.0, difference + half))
    note = f": {no_interval(k, 'differences')}" if half is None else ""
    like_these = PairedDifference(
        estimate=difference,
        low=around[0],
        high=around[1],
        speaks_of=f"other prompts like these {told}, of the same trained models{note}",
        n=k,
        correlation=correlation(first, second),
        p_value=p_value,
    )
    speaks_of = f"new answers to these {told}, of the same trained models"
    return CellDifference(Estimate(difference, max(-1.0, low), min(1.0, high), speaks_of), like_these, missing)


def missing_bounds(successes: Sequence[int], judged: Sequence[int], asked: Sequence[int]) -> MissingBounds:
    """Worst cases of the unweighted mean over cells, of whose asked[i] answers judged[i] have a judgement (Manski
    1990, American Economic Review 80:319). One cell is a list of one.

    Raises: ValueError for counts that cannot be, or a cell that nothing was asked in.
    """
    done, known = counts("missing_bounds", successes, judged)
    _, n = counts("missing_bounds", judged, asked)
    if (n == 0).any():
        raise ValueError("missing_bounds: a cell of which nothing was asked has no bounds")
    estimate = float((done / known).mean()) if (known > 0).all() else None
    missing = n - known
    return MissingBounds(
        estimate=estimate,
        low=float((done / n).mean()),
        high=float(((done + missing) / n).mean()),
        judged=int(known.sum()),
        missing=int(missing.sum()),
        speaks_of=f"{int(missing.sum())} of {int(n.sum())} judgements are missing: all of them 0, or all 1",
    )


def _linear(done: np.ndarray, n: np.ndarray, weights: np.ndarray, confidence: float) -> tuple[float, float]:
    """Interval of sum(weights * rates), by adding z^2 answers in all, half of them successes, evenly over the cells
    (Price & Bonett 2004, who round z^2 to 4; with one cell it is the interval of Agresti & Coull)."""
    z = normal(confidence)
    added = z * z / n.size
    shrunk = (done + added / 2) / (n + added)
    center = float(weights @ shrunk)
    half = z * math.sqrt(float(weights**2 @ (shrunk * (1 - shrunk) / (n + added))))
    estimate = float(weights @ (done / n))
    return min(estimate, center - half), max(estimate, center + half)


def _seen(who: str, seen: np.ndarray, names: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Which cells count, and the names of those that do not."""
    names = [f"cell {i}" for i in range(seen.size)] if names is None else list(names)
    if len(names) != seen.size:
        raise ValueError(f"{who}: {len(names)} names for {seen.size} cells")
    if not seen.any():
        raise ValueError(f"{who}: no cell has a judged answer")
    return seen, tuple(name for name, here in zip(names, seen, strict=True) if not here)


def _told(k: int, missing: Sequence[str]) -> str:
    """How many prompts, and which are missing."""
    prompts = f"{k} prompt{'s' if k > 1 else ''}"
    return f"{prompts} ({len(missing)} without a judged answer: {', '.join(missing)})" if missing else prompts
