"""Differences between two arms that were asked the same: over seeds, over items, and against the noise of measuring.

A pair's two values share what makes the item hard or the seed lucky, which falls out of their difference: so a paired
interval is as much narrower as the pairs correlate, and two overlapping error bars say little.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from msm_jax.eval.stats.estimate import Estimate, no_interval, normal, rate_pairs, student
from msm_jax.eval.stats.rates import Interval, wilson


@dataclass(frozen=True)
class PairedDifference(Estimate):
    """First minus second, over `n` pairs. `correlation` of the pairs is Pearson's, None where an arm does not vary;
    `p_value` is that of no difference, two-sided, None where there is none."""

    n: int
    correlation: float | None
    p_value: float | None


@dataclass(frozen=True)
class Floor:
    """What measuring alone moves. `sd` is the standard deviation of the difference of two measurements of one
    checkpoint, `flips` the share of outcomes that two measurements have different, with its Wilson interval."""

    sd: float
    flips: Estimate
    repeats: int
    items: int

    def is_above(self, difference: float, confidence: float = 0.95) -> bool:
        """Whether measuring again would seldom (5 % for .95) give a difference as large. Above the floor is not yet
        an effect of training: seeds vary too."""
        return abs(difference) > normal(confidence) * self.sd


def seed_difference(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> PairedDifference:
    """Paired Student t over seeds: first[i] and second[i] are the rates of two arms that were trained with seed i.

    With one seed, and where all differences are equal, there is no interval. Raises: ValueError for rates outside
    [0, 1], none, or different lengths.
    """
    first, second = rate_pairs("seed_difference", first, second)
    speaks_of = "other training runs, asked the same prompts"
    return _paired_t(first - second, correlation(first, second), speaks_of, confidence, limit=1.0)


def item_difference(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> PairedDifference:
    """Paired over items: first[i] and second[i] are the scores of two arms on item i, in [0, 1].

    An item that is asked several times (in both orders) is one item: give the mean of its scores. Where all scores are
    0 or 1, the interval is the adjusted Wald interval of Bonett & Price (2012, Journal of Educational and Behavioral
    Statistics 37:479), which knows a width even where no item differs; of others it is the paired t. The p-value is
    that of the exact McNemar test; of others than 0 and 1, of items won against items lost, which is the sign test.

    Raises: ValueError for scores outside [0, 1], none, or different lengths.
    """
    first, second = rate_pairs("item_difference", first, second)
    speaks_of = "other items like these, of the same trained models"
    together = correlation(first, second)
    p_value = _mcnemar(int((first > second).sum()), int((first < second).sum()))
    if is_binary(first, second):
        low, high = adjusted_wald(first, second, confidence)
        return PairedDifference(float((first - second).mean()), low, high, speaks_of, first.size, together, p_value)
    found = _paired_t(first - second, together, speaks_of, confidence, limit=1.0)
    return dataclasses.replace(found, p_value=p_value)


def seed_difference_in_differences(
    own: tuple[Sequence[float], Sequence[float]],
    cross: tuple[Sequence[float], Sequence[float]],
    confidence: float = 0.95,
) -> PairedDifference:
    """How much more an arm moves its own value than another: (own[0] - own[1]) - (cross[0] - cross[1]) seed by seed,
    each pair being (with, without) as rates of the same seeds; paired t over seeds.

    `correlation` is that of the two differences. Raises: ValueError as `seed_difference`.
    """
    moved, crossed = _moved(own, "own value"), _moved(cross, "other value")
    if moved.size != crossed.size:
        raise ValueError(f"difference in differences: {moved.size} seeds but {crossed.size} of the other value")
    speaks_of = "other training runs, asked the same prompts"
    return _paired_t(moved - crossed, correlation(moved, crossed), speaks_of, confidence, limit=2.0)


def item_difference_in_differences(
    own: tuple[Sequence[float], Sequence[float]],
    cross: tuple[Sequence[float], Sequence[float]],
    confidence: float = 0.95,
) -> Estimate:
    """As `seed_difference_in_differences`, over items. The two values have items of their own, so each pair of lists
    is paired within, and the two mean differences are compared as two samples (Welch 1947, Biometrika 34:28).

    Raises: ValueError as `item_difference`.
    """
    from scipy.stats import ttest_ind

    moved, crossed = _moved(own, "own value"), _moved(cross, "other value")
    speaks_of = "other items like these, of the same trained models"
    difference = float(moved.mean() - crossed.mean())
    least = min(moved.size, crossed.size)
    if least < 2 or np.ptp(moved) + np.ptp(crossed) <= 1e-12:
        return Estimate(difference, None, None, f"{speaks_of}: {no_interval(least, 'differences')}")
    low, high = ttest_ind(moved, crossed, equal_var=False).confidence_interval(confidence)
    return Estimate(difference, max(-2.0, float(low)), min(2.0, float(high)), speaks_of)


def remeasurement_floor(outcomes: Sequence[Sequence[float]], confidence: float = 0.95) -> Floor:
    """The same checkpoint measured again: outcomes[r][i] is the score of item i in measurement r, in [0, 1].

    `sd` is the larger of two estimates: from the items (as if they flip each by itself), and from three measurements
    on, from the spread of the rates, which also has what moves all items of one measurement together, as another
    batch does.

    Raises: ValueError for one measurement, no items, or scores outside [0, 1].
    """
    table = np.asarray(outcomes, dtype=float)
    if table.ndim != 2 or table.shape[0] < 2 or not table.shape[1]:
        raise ValueError(f"remeasurement_floor: expected 2 or more measurements of the same items, got {table.shape}")
    if not ((table >= 0) & (table <= 1)).all():
        raise ValueError("remeasurement_floor: a score is outside 0..1")
    repeats, items = table.shape
    first, second = np.triu_indices(repeats, 1)
    # Two scores of an item differ by twice the variance of one, on average over pairs of measurements.
    sd = math.sqrt(2 * float(table.var(axis=0, ddof=1).sum())) / items
    if repeats > 2:
        sd = max(sd, math.sqrt(2) * float(table.mean(axis=1).std(ddof=1)))
    share = float((table[first] != table[second]).mean())
    low, high = wilson(share * items, items, confidence)
    return Floor(sd, Estimate(share, low, high, "other items like these, measured twice"), repeats, items)


def correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's, None with fewer than two pairs or where one side does not vary."""
    if first.size < 2 or np.ptp(first) <= 1e-12 or np.ptp(second) <= 1e-12:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def is_binary(*arrays: np.ndarray) -> bool:
    return all(np.isin(array, (0.0, 1.0)).all() for array in arrays)


def adjusted_wald(first: np.ndarray, second: np.ndarray, confidence: float) -> Interval:
    """Interval of the difference of two rates over the same items, scores 0 or 1: one item is added that the first
    alone has and one that the second alone has (Bonett & Price 2012)."""
    center, se = adjusted_difference(first, second)
    half = normal(confidence) * se
    raw = float((first - second).mean())
    return Interval(max(-1.0, min(raw, center - half)), min(1.0, max(raw, center + half)))


def adjusted_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """(difference, standard error), as `adjusted_wald` has them."""
    n = first.size + 2
    won, lost = ((first > second).sum() + 1) / n, ((first < second).sum() + 1) / n
    return float(won - lost), math.sqrt(float(won + lost - (won - lost) ** 2) / n)


def _paired_t(
    differences: np.ndarray, together: float | None, speaks_of: str, confidence: float, limit: float
) -> PairedDifference:
    mean, half, p_value = student(differences, confidence)
    n = differences.size
    if half is None:
        return PairedDifference(mean, None, None, f"{speaks_of}: {no_interval(n, 'differences')}", n, together, None)
    low, high = max(-limit, mean - half), min(limit, mean + half)
    return PairedDifference(mean, low, high, speaks_of, n, together, p_value)


def _moved(pair: tuple[Sequence[float], Sequence[float]], name: str) -> np.ndarray:
    first, second = rate_pairs(name, *pair)
    return first - second


def _mcnemar(won: int, lost: int) -> float:
    from statsmodels.stats.contingency_tables import mcnemar

    return min(1.0, float(mcnemar([[0, won], [lost, 0]], exact=True).pvalue)) if won + lost else 1.0
