"""Intervals and tests for rates: over items (Wilson), over seeds (Student t), over clusters (bootstrap), paired.

An interval covers only the variation it was drawn over. Wilson over items speaks of "such items" for one trained
model; the seed interval speaks of "such training runs" on these items; the cluster bootstrap of "such domains".
"""

import itertools
import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

EXACT_PAIRS = 14  # up to 2**14 sign flips are enumerated; above that they are sampled
SAMPLED_FLIPS = 10_000


class Interval(NamedTuple):
    low: float
    high: float


class SeedSummary(NamedTuple):
    """Mean of `n` per-seed rates; `sem`, `low` and `high` are None with one seed, where the spread is unknown."""

    mean: float
    sem: float | None
    low: float | None
    high: float | None
    n: int


class PairedDifference(NamedTuple):
    """Mean of a - b over `n` pairs, its t-interval and the two-sided sign-flip p, which are None for one pair."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a rate (Wilson 1927, JASA 22:209; without continuity correction).

    `successes` may be fractional (ties counted as half, or per-item shares in [0, 1]): such scores vary no more than
    a coin of the same mean, so the interval is then conservative. With n = 0 nothing is known: (0, 1).

    Raises: ValueError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson: successes={successes} is outside 0..n={n}")
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    center = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # At 0 and n one bound is the rate itself; rounding must not push it past.
    return Interval(min(rate, max(0.0, center - half)), max(rate, min(1.0, center + half)))


def student_t(confidence: float, freedom: int) -> float:
    """The t with P(|T| < t) = confidence for integer degrees of freedom.

    Inverts the finite trigonometric sums of Abramowitz & Stegun 26.7.3 (odd) and 26.7.4 (even) by bisection on
    the angle arctan(t / sqrt(freedom)).
    """
    odd = freedom % 2
    order = np.arange(1, (freedom - 2 - odd) // 2 + 1)
    ratios = (2 * order - 1 + odd) / (2 * order + odd)

    def coverage(angle: float) -> float:
        series = 1 + np.cumprod(ratios * math.cos(angle) ** 2).sum()
        if not odd:
            return math.sin(angle) * series
        tail = math.sin(angle) * math.cos(angle) * series if freedom > 1 else 0.0
        return 2 / math.pi * (angle + tail)

    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if coverage(middle) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def seed_summary(rates: Sequence[float], confidence: float = 0.95) -> SeedSummary:
    """Mean over seeds, SEM (sample standard deviation, n - 1, over sqrt n) and Student t-interval (Student 1908).

    The paper's error bars are +-1 SEM of per-seed rates, 4 seeds (arXiv 2605.02087). The interval is not clipped to
    [0, 1]. Raises: ValueError without rates.
    """
    rates = np.asarray(rates, dtype=float)
    if rates.size == 0:
        raise ValueError("seed_summary: no rates")
    mean = float(rates.mean())
    if rates.size == 1:
        return SeedSummary(mean, None, None, None, 1)
    sem = float(rates.std(ddof=1)) / math.sqrt(rates.size)
    half = student_t(confidence, rates.size - 1) * sem
    return SeedSummary(mean, sem, mean - half, mean + half, int(rates.size))


def cluster_bootstrap(
    scores: Sequence[float],
    clusters: Sequence[Hashable],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Percentile interval of the mean of `scores` when whole clusters (domains) are drawn with replacement.

    Items of one domain move together, so the item count overstates what is known about new domains (Field & Welsh
    2007, JRSS-B 69:369; arXiv 2411.00640 for evaluations). Too narrow with few clusters, as every bootstrap is
    (Cameron, Gelbach & Miller 2008): take it as a lower limit of the width below about ten. None with fewer than
    two clusters.

    Args: scores[i] belongs to clusters[i]. Raises: ValueError if the lengths differ.
    """
    if len(scores) != len(clusters):
        raise ValueError(f"cluster_bootstrap: {len(scores)} scores but {len(clusters)} cluster labels")
    names = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    if len(names) < 2:
        return None
    index = np.array([names[name] for name in clusters])
    totals = np.bincount(index, weights=np.asarray(scores, dtype=float))
    counts = np.bincount(index)
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    means = totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(low), float(high))


def paired_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, seed: int = 0
) -> PairedDifference:
    """Difference a - b of two arms measured on the same seeds or items: mean, t-interval, sign-flip p.

    The p-value is two-sided and needs no distribution: under "no difference" each pair's sign is a fair coin (Fisher
    1935; Pitman 1937). All sign patterns are tried up to 14 pairs; beyond, 10,000 are drawn and p = (hits + 1) /
    (draws + 1) (Phipson & Smyth 2010). With m pairs it cannot fall below 2 / 2**m: four seeds give at best .125.

    Raises: ValueError if the lengths differ or are zero.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"paired_difference: needs equally many values of both, got {len(a)} and {len(b)}")
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    summary = seed_summary(differences, confidence)
    if summary.n == 1:
        return PairedDifference(summary.mean, None, None, None, 1)
    # Rounding must not make the observed pattern look less extreme than itself.
    observed = abs(differences.sum()) - 1e-9 * max(1.0, np.abs(differences).sum())
    if summary.n <= EXACT_PAIRS:
        signs = np.array(list(itertools.product((-1, 1), repeat=summary.n)))
        p = float(np.mean(np.abs(signs @ differences) >= observed))
    else:
        signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(SAMPLED_FLIPS, summary.n))
        p = (int(np.sum(np.abs(signs @ differences) >= observed)) + 1) / (SAMPLED_FLIPS + 1)
    return PairedDifference(summary.mean, summary.low, summary.high, p, summary.n)
