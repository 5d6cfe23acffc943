"""What may be claimed: of many contrasts at once, and of "does not change"."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from msm_jax.eval.stats.estimate import rate_pairs, student
from msm_jax.eval.stats.paired import adjusted_difference, adjusted_wald, is_binary

UNITS = ("item", "cell", "seed")


@dataclass(frozen=True)
class Contrast:
    """`adjusted` is the p-value to compare with alpha: that of the primary contrast as it is, Holm's of the others."""

    name: str
    p_value: float
    adjusted: float
    significant: bool
    primary: bool


@dataclass(frozen=True)
class Equivalence:
    """`low` and `high` are the 1 - 2 alpha interval: the verdict is "unchanged within +-margin" if it lies within the
    margin, which is the same as both one-sided tests, else "not shown". `p_value` is the larger of theirs."""

    estimate: float
    low: float | None
    high: float | None
    margin: float
    p_value: float | None
    verdict: str


def holm(
    names: Sequence[str], p_values: Sequence[float], primary: str | None = None, alpha: float = 0.05
) -> list[Contrast]:
    """Of many contrasts, which hold (Holm 1979, Scandinavian Journal of Statistics 6:65): with probability 1 - alpha
    none of the secondary ones is called significant wrongly, however they hang together. `primary`, named before the
    run, stands outside.

    Returns: one a name, in their order. Raises: ValueError for no contrast, different lengths, p-values outside
    [0, 1], a name that comes twice, or a primary that is none of them.
    """
    from statsmodels.stats.multitest import multipletests

    if not names or len(names) != len(p_values):
        raise ValueError(f"holm: {len(names)} names but {len(p_values)} p-values")
    if len(set(names)) < len(names):
        raise ValueError("holm: two contrasts have the same name")
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError("holm: a p-value is outside 0..1")
    if primary is not None and primary not in names:
        raise ValueError(f"holm: the primary contrast {primary!r} is none of {', '.join(names)}")
    adjusted = dict(zip(names, map(float, p_values), strict=True))
    others = [name for name in names if name != primary]
    if others:
        family = multipletests([adjusted[name] for name in others], alpha, method="holm")[1]
        adjusted |= dict(zip(others, map(float, family), strict=True))
    return [
        Contrast(name, float(p), adjusted[name], adjusted[name] <= alpha, name == primary)
        for name, p in zip(names, p_values, strict=True)
    ]


def equivalence(
    first: Sequence[float], second: Sequence[float], margin: float, unit: str, alpha: float = 0.05
) -> Equivalence:
    """Two one-sided tests that the mean paired difference lies within +-margin (Schuirmann 1987, Journal of
    Pharmacokinetics and Biopharmaceutics 15:657). A difference that is not significant is no evidence of none.

    first[i] and second[i] are rates of one "seed" or "cell", or scores of one "item", as `unit` says. The tests are t
    tests; of items that are all scored 0 or 1 they use the adjusted standard error of `item_difference`. With one seed
    or cell, or differences that are all equal, nothing is shown.

    Raises: ValueError for a margin that is not above 0, another unit, rates outside [0, 1], none, or different lengths.
    """
    if not margin > 0:
        raise ValueError(f"equivalence: the margin must be above 0, got {margin}")
    if unit not in UNITS:
        raise ValueError(f"equivalence: unit is one of {', '.join(UNITS)}, got {unit!r}")
    first, second = rate_pairs("equivalence", first, second)
    confidence = 1 - 2 * alpha
    if unit == "item" and is_binary(first, second):
        low, high = adjusted_wald(first, second, confidence)
        estimate, p_value = float((first - second).mean()), _two_one_sided_z(first, second, margin)
    else:
        estimate, half, _ = student(first - second, confidence)
        if half is None:
            return Equivalence(estimate, None, None, margin, None, "not shown")
        low, high, p_value = estimate - half, estimate + half, _two_one_sided_t(first, second, margin)
    shown = f"unchanged within +-{margin:g}" if -margin < low and high < margin else "not shown"
    return Equivalence(estimate, low, high, margin, p_value, shown)


def _two_one_sided_t(first: np.ndarray, second: np.ndarray, margin: float) -> float:
    from statsmodels.stats.weightstats import ttost_paired

    return float(ttost_paired(first, second, -margin, margin)[0])


def _two_one_sided_z(first: np.ndarray, second: np.ndarray, margin: float) -> float:
    from scipy.special import ndtr

    center, se = adjusted_difference(first, second)
    return float(max(ndtr((center - margin) / se), ndtr(-(center + margin) / se)))
