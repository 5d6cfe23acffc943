"""How far a judge is to be believed: agreement, error rates against a person, and rates corrected for them.

1 is what the rate counts (harmful, say), 0 is not.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from msm_jax.eval.stats.estimate import Estimate, labels, normal
from msm_jax.eval.stats.rates import wilson


@dataclass(frozen=True)
class Agreement:
    """Of two judges. table[i][j] counts where the first said i and the second j. `agree` is the share on which they
    agree (Wilson); `kappa` is Cohen's, all None where both said the same of everything, and without an interval where
    one did, and where they never differed: then `agree.low` says how far that is known."""

    kappa: Estimate
    agree: Estimate
    table: tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Accuracy:
    """A judge against a person. `sensitivity`: share of the person's 1 that the judge calls 1; `specificity`: of the
    person's 0 that it calls 0; all None without such. `ones`, `zeros`: how many of each the person found."""

    agreement: Agreement
    sensitivity: Estimate
    specificity: Estimate
    ones: int
    zeros: int


@dataclass(frozen=True)
class ErrorRates:
    """p-values of equal sensitivity and specificity in all arms; None where fewer than two arms have such examples.
    `differ` is True where either is at most alpha / 2: then each arm is corrected by its own."""

    sensitivity_p: float | None
    specificity_p: float | None
    differ: bool
    sentence: str


@dataclass(frozen=True)
class CorrectedRate(Estimate):
    """`raw` is the judge's rate; `reason` says why there is no corrected one, else None."""

    raw: float
    reason: str | None


def agreement(first: Sequence[int], second: Sequence[int], confidence: float = 0.95) -> Agreement:
    """Cohen's kappa (1960): agreement beyond what two judges with such rates have by chance. It falls with rare labels,
    so look at the table too.

    The interval has the large-sample standard error (Fleiss, Cohen & Everitt 1969, Psychological Bulletin 72:323) on
    the scale of log(1 - kappa): so it stays below 1, and covers what it says with 50 labels, where kappa +- 1.96
    standard errors covers 91 % (tests/eval/test_stats_coverage.py).

    Raises: ValueError for no labels, different numbers of them, or other labels than 0 and 1.
    """
    from statsmodels.stats.inter_rater import cohens_kappa

    a, b = labels("agreement", first, second)
    table = [[int((~a & ~b).sum()), int((~a & b).sum())], [int((a & ~b).sum()), int((a & b).sum())]]
    same = table[0][0] + table[1][1]
    speaks_of = "other transcripts like these, the same two judges"
    low, high = wilson(same, a.size, confidence)
    agree = Estimate(same / a.size, low, high, speaks_of)
    if max(table[0][0], table[1][1]) == a.size:
        kappa = Estimate(None, None, None, "no kappa: both gave every transcript the same label")
    elif same == a.size:
        kappa = Estimate(1.0, None, None, f"{speaks_of}: no interval, as they never differed")
    elif a.all() or b.all() or not a.any() or not b.any():
        kappa = Estimate(0.0, None, None, f"{speaks_of}: no interval, as one gave every transcript the same label")
    else:
        found = cohens_kappa(table)
        value = float(found.kappa)
        factor = math.exp(normal(confidence) * float(found.std_kappa) / (1 - value))
        kappa = Estimate(value, max(-1.0, 1 - (1 - value) * factor), 1 - (1 - value) / factor, speaks_of)
    return Agreement(kappa, agree, (tuple(table[0]), tuple(table[1])))


def accuracy(judge: Sequence[int], person: Sequence[int], confidence: float = 0.95) -> Accuracy:
    """A judge against the labels of a person who did not see the judge's. Wilson intervals.

    The gold set must not have been chosen by the judge's verdict: taking as many of its 1 as of its 0 makes both
    error rates wrong. Raises: ValueError as `agreement`.
    """
    said, true = labels("accuracy", judge, person)
    ones, zeros = int(true.sum()), int((~true).sum())
    return Accuracy(
        agreement=agreement(judge, person, confidence),
        sensitivity=_share(int((said & true).sum()), ones, "the person called 1", confidence),
        specificity=_share(int((~said & ~true).sum()), zeros, "the person called 0", confidence),
        ones=ones,
        zeros=zeros,
    )


def accuracy_by_arm(
    judge: Sequence[int], person: Sequence[int], arms: Sequence[Hashable], confidence: float = 0.95
) -> dict[Hashable, Accuracy]:
    """`accuracy` within each arm, in the order in which they come. Raises: ValueError as `agreement`."""
    if len(arms) != len(judge):
        raise ValueError(f"accuracy_by_arm: {len(judge)} labels but {len(arms)} arms")
    labels("accuracy_by_arm", judge, person)
    rows = {arm: [i for i, name in enumerate(arms) if name == arm] for arm in dict.fromkeys(arms)}
    return {arm: accuracy([judge[i] for i in at], [person[i] for i in at], confidence) for arm, at in rows.items()}


def compare_errors(by_arm: Mapping[Hashable, Accuracy], alpha: float = 0.05) -> ErrorRates:
    """Whether the judge errs alike in all arms: Fisher's exact test of each error rate (with three arms and more by
    9,999 random tables of seed 0), each at alpha / 2.

    Small gold sets find only large differences, so "not shown to differ" is no licence: report the arms beside it.

    Raises: ValueError with fewer than two arms.
    """
    if len(by_arm) < 2:
        raise ValueError(f"compare_errors: two arms or more, got {len(by_arm)}")
    sensitivity = _same_share([(judge.sensitivity.estimate, judge.ones) for judge in by_arm.values()])
    specificity = _same_share([(judge.specificity.estimate, judge.zeros) for judge in by_arm.values()])
    known = {"sensitivity": sensitivity, "specificity": specificity}
    found = [name for name, p in known.items() if p is not None and p <= alpha / 2]
    unknown = [name for name, p in known.items() if p is None]
    if found:
        verb = "differ" if len(found) > 1 else "differs"
        text = f"The judge's {' and '.join(found)} {verb} by arm: correct each arm by its own."
    else:
        text = "The judge's error rates were not shown to differ by arm."
    if unknown:
        text += f" {' and '.join(unknown).capitalize()} could not be compared: fewer than two arms have such examples."
    return ErrorRates(sensitivity, specificity, bool(found), text)


def corrected_rate(successes: int, n: int, judge: Accuracy, confidence: float = 0.95) -> CorrectedRate:
    """The rate that a person would have found, from the judge's successes / n: (p + sp - 1) / (se + sp - 1), clipped to
    [0, 1] (Rogan & Gladen 1978, American Journal of Epidemiology 107:71). The interval, from the rates with
    pseudo-counts and the delta method, has the calibration's uncertainty in it (Lang & Reiczigel 2014, Preventive
    Veterinary Medicine 113:13; for language models Lee et al., arXiv 2511.21140).

    It speaks of new answers: n counts independent answers. No correction is possible where the judge is not shown to
    be better than a coin, or where its rate lies beyond what its errors allow (fewer 1 than false alarms alone would
    give): then all three are None and `reason` says why.

    Raises: ValueError unless 0 <= successes <= n and n > 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"corrected_rate: successes={successes} is outside 0..n={n}, n > 0")
    raw = successes / n
    se, sp = judge.sensitivity.estimate, judge.specificity.estimate
    if reason := _uncorrectable(judge):
        return CorrectedRate(None, None, None, "no corrected rate", raw, reason)
    z = normal(confidence)
    rate = min(1.0, max(0.0, (raw + sp - 1) / (se + sp - 1)))
    p, p_var = _shrunk(raw, n, z * z)
    se, se_var = _shrunk(se, judge.ones, 2)
    sp, sp_var = _shrunk(sp, judge.zeros, 2)
    youden = se + sp - 1
    center = (p + sp - 1) / youden
    half = z * math.sqrt(p_var + center**2 * se_var + (1 - center) ** 2 * sp_var) / youden
    center += 2 * z * z * (center * se_var - (1 - center) * sp_var)
    if center + half < 0 or center - half > 1:
        side = "false alarms" if center < 0.5 else "sensitivity"
        reason = f"the judge's rate {raw:.3f} does not fit its {side} in the gold set, which is of something else"
        return CorrectedRate(None, None, None, "no corrected rate", raw, reason)
    low, high = max(0.0, min(rate, center - half)), min(1.0, max(rate, center + half))
    return CorrectedRate(rate, low, high, "new answers, and another gold set of this size", raw, None)


def _shrunk(share: float, n: int, added: float) -> tuple[float, float]:
    """(share, its variance) with `added` observations more, half of them successes."""
    shrunk = (share * n + added / 2) / (n + added)
    return shrunk, shrunk * (1 - shrunk) / (n + added)


def _uncorrectable(judge: Accuracy) -> str | None:
    """Why not, or None. That sensitivity + specificity - 1 is above 0 must be shown by its 95 % interval, which is
    put together of the two Wilson intervals (Newcombe 1998, Statistics in Medicine 17:873)."""
    if not judge.ones or not judge.zeros:
        return f"the gold set has {judge.ones} of 1 and {judge.zeros} of 0: both are needed"
    (se, sp), (m1, m0) = (judge.sensitivity.estimate, judge.specificity.estimate), (judge.ones, judge.zeros)
    below = math.hypot(se - wilson(se * m1, m1).low, sp - wilson(sp * m0, m0).low)
    if se + sp - 1 - below > 0:
        return None
    return (
        f"sensitivity {se:.2f} + specificity {sp:.2f} is too near to 1 for {m1} and {m0} labels: "
        f"the judge is not shown to be better than a coin"
    )


def _share(successes: int, n: int, of: str, confidence: float) -> Estimate:
    if not n:
        return Estimate(None, None, None, f"no transcript that {of}")
    low, high = wilson(successes, n, confidence)
    return Estimate(successes / n, low, high, f"other transcripts that {of}")


def _same_share(shares: Sequence[tuple[float | None, int]]) -> float | None:
    """p-value of equal shares of (share, n); None with fewer than two that have an n."""
    from scipy.stats import MonteCarloMethod, fisher_exact

    table = np.array([(round(share * n), n - round(share * n)) for share, n in shares if n], dtype=int).reshape(-1, 2)
    if len(table) < 2:
        return None
    if not table.sum(axis=0).all():  # all right, or all wrong
        return 1.0
    method = None if len(table) == 2 else MonteCarloMethod(n_resamples=9_999, rng=np.random.default_rng(0))
    return float(fisher_exact(table, method=method).pvalue)
