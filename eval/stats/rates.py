"""Intervals for rates: over items (Wilson), over seeds (Student t), over clusters (bootstrap).

An interval covers only the variation it was drawn over. Wilson over items speaks of "such items" for one trained
model; the seed interval speaks of "such training runs" on these items; the cluster bootstrap of "such domains".
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit


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

    @property
    def estimate(self) -> float:
        return self.mean

    @property
    def speaks_of(self) -> str:
        return "other training runs, asked the same prompts"


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


def clustered_wilson(successes: Sequence[int], totals: Sequence[int], confidence: float = 0.95) -> Interval:
    """Wilson interval of sum(successes) / sum(totals), where the items of one cluster (the claims of one document) go
    together: for as many items as would vary independently as much as the clusters do (the effective sample size of
    Korn & Graubard 1998, Survey Methodology 24:193), at most all of them. Where the clusters do not vary, each counts
    as one item. With no item nothing is known: (0, 1).

    Raises: ValueError if the lengths differ.
    """
    if len(successes) != len(totals):
        raise ValueError(f"clustered_wilson: {len(successes)} successes but {len(totals)} totals")
    done, n = np.asarray(successes, dtype=float), np.asarray(totals, dtype=float)
    done, n = done[n > 0], n[n > 0]
    if not n.size:
        return Interval(0.0, 1.0)
    rate = float(done.sum() / n.sum())
    spread = float(((done - rate * n) ** 2).sum()) * n.size / max(n.size - 1, 1) / float(n.sum()) ** 2
    effective = rate * (1 - rate) / spread if spread > 0 and n.size > 1 else n.size
    effective = min(effective, float(n.sum()))
    return wilson(rate * effective, effective, confidence)


def clustered_share(found: Sequence[tuple[Hashable, bool]]) -> dict[str, float | int | None]:
    """Of items (their cluster, whether they have it): {"rate", "low", "high": `clustered_wilson`, "n"}; without items,
    None and n = 0."""
    if not found:
        return {"rate": None, "low": None, "high": None, "n": 0}
    yes, n = Counter(cluster for cluster, has in found if has), Counter(cluster for cluster, _ in found)
    low, high = clustered_wilson([yes[cluster] for cluster in n], list(n.values()))
    return {"rate": sum(yes.values()) / len(found), "low": low, "high": high, "n": len(found)}


def seed_summary(rates: Sequence[float], confidence: float = 0.95) -> SeedSummary:
    """Mean over seeds, SEM (sample standard deviation, n - 1, over sqrt n) and Student t-interval (Student 1908).

    The paper's error bars are +-1 SEM of per-seed rates, 4 seeds (arXiv 2605.02087). The interval is not clipped to
    [0, 1]. Of the differences between two arms seed by seed it is the paired t-interval.

    Raises: ValueError without rates.
    """
    rates = np.asarray(rates, dtype=float)
    if rates.size == 0:
        raise ValueError("seed_summary: no rates")
    mean = float(rates.mean())
    if rates.size == 1:
        return SeedSummary(mean, None, None, None, 1)
    sem = float(rates.std(ddof=1)) / math.sqrt(rates.size)
    half = float(stdtrit(rates.size - 1, 0.5 + confidence / 2)) * sem
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
