"""A number with its interval, and the checks of what goes into one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import stdtr, stdtrit


@dataclass(frozen=True)
class Estimate:
    """`estimate` with the interval `low` to `high`, all None where there is no number, `low` and `high` None where the
    data give no interval. `speaks_of` is a sentence: what would have to be drawn anew for the number to vary so."""

    estimate: float | None
    low: float | None
    high: float | None
    speaks_of: str


def normal(confidence: float) -> float:
    """The two-sided point of the normal distribution, 1.96 for .95. Raises: ValueError unless 0 < confidence < 1."""
    _check_confidence(confidence)
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} is outside 0..1")


def student(values: np.ndarray, confidence: float) -> tuple[float, float | None, float | None]:
    """(mean, half width of its Student t-interval, two-sided p-value of mean 0), the last two None with one value or
    where all are equal: then the spread, which the method takes from the values, is unknown."""
    _check_confidence(confidence)
    mean, n = float(values.mean()), values.size
    if n < 2 or np.ptp(values) <= 1e-12:
        return mean, None, None
    sem = float(values.std(ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * sem
    return mean, half, 2 * float(stdtr(n - 1, -abs(mean) / sem))


def no_interval(n: int, what: str) -> str:
    """Why `student` has none."""
    return "no interval, as there is one" if n == 1 else f"no interval, as all {what} are equal"


def rates(name: str, values: Sequence[float]) -> np.ndarray:
    """float64 [n]. Raises: ValueError naming `name` if there are none, or one is no number in [0, 1]."""
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name}: expected a list of rates, got shape {array.shape}")
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"{name}: a rate is outside 0..1")
    return array


def rate_pairs(name: str, first: Sequence[float], second: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays float64 [n]. Raises: ValueError as `rates`, and if the lengths differ."""
    if len(first) != len(second):
        raise ValueError(f"{name}: {len(first)} values but {len(second)} to pair them with")
    return rates(name, first), rates(name, second)


def counts(name: str, successes: Sequence[float], totals: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays float64 [n]. Raises: ValueError naming `name` if there are none, the lengths differ, or a count of
    successes is not within 0 and its total."""
    if len(successes) != len(totals):
        raise ValueError(f"{name}: {len(successes)} counts of successes but {len(totals)} totals")
    done, n = np.asarray(successes, dtype=float), np.asarray(totals, dtype=float)
    if done.ndim != 1 or not done.size:
        raise ValueError(f"{name}: expected a list of counts, got shape {done.shape}")
    if not ((done >= 0) & (done <= n)).all():
        raise ValueError(f"{name}: a count of successes is outside 0..its total")
    return done, n


def labels(name: str, *columns: Sequence[int]) -> list[np.ndarray]:
    """bool [n] for each column. Raises: ValueError naming `name` if they are empty, of different lengths, or hold
    anything but 0 and 1."""
    if not len(columns[0]) or len({len(column) for column in columns}) > 1:
        raise ValueError(f"{name}: expected as many labels in each, got {' and '.join(str(len(c)) for c in columns)}")
    arrays = [np.asarray(column) for column in columns]
    for array in arrays:
        if not np.isin(array, (0, 1)).all():
            raise ValueError(f"{name}: labels are 0 or 1")
    return [array.astype(bool) for array in arrays]
