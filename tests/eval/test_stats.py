import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from msm_jax.eval import stats

rates = st.lists(st.floats(0, 1), min_size=2, max_size=12)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # By hand with z = 1.959964, z^2 = 3.841459. 0 of 10: low 0, high z^2 / (n + z^2) = 3.841459 / 13.841459.
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        # 5 of 10: .5 -+ z / (n + z^2) * sqrt(n / 4 + z^2 / 4) = .5 -+ .141601 * 1.860213.
        (5, 10, 0.236593, 0.763407),
        # 81 of 263, the worked example of Newcombe (1998), table I: .2553 to .3662.
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_matches_hand_computed_values(successes, n, low, high):
    assert stats.wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 300), (15, 300), (162, 300), (300, 300), (7, 9)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_is_that_of_statsmodels(successes, n, confidence):
    expected = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    assert stats.wilson(successes, n, confidence) == pytest.approx(expected, abs=1e-12)


def test_wilson_without_trials_knows_nothing():
    assert stats.wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 10), (11, 10), (1, 0)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="outside"):
        stats.wilson(successes, n)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 2000), st.floats(0, 1))
def test_wilson_holds_the_rate_and_mirrors(n, share):
    successes = round(share * n)
    low, high = stats.wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert stats.wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    wider = stats.wilson(successes, n, confidence=0.99)
    assert wider.low <= low and high <= wider.high
    if successes < n:
        more = stats.wilson(successes + 1, n)
        assert low <= more.low and high <= more.high


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.97])
def test_wilson_covers(rate):
    """Exact coverage at n = 60, as a sum over all outcomes: no simulation needed."""
    n = 60
    inside = [low <= rate <= high for low, high in (stats.wilson(k, n) for k in range(n + 1))]
    coverage = sum(scipy.stats.binom.pmf(k, n, rate) for k in range(n + 1) if inside[k])
    assert 0.92 <= coverage <= 0.98


def test_seed_interval_matches_printed_t_tables():
    # Two-sided 95 % points of any t table.
    for freedom, value in {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042, 120: 1.980}.items():
        summary = stats.seed_summary([0.3] + [0.4] * freedom)
        assert (summary.high - summary.mean) / summary.sem == pytest.approx(value, abs=6e-4)
        assert (summary.mean - summary.low) / summary.sem == pytest.approx(value, abs=6e-4)


def test_seed_summary_by_hand():
    summary = stats.seed_summary([0.9, 1.0, 0.8, 0.9])
    sem = math.sqrt(0.02 / 3) / 2  # squared deviations .01 + .01
    assert summary.mean == pytest.approx(0.9)
    assert summary.sem == pytest.approx(sem)
    assert (summary.low, summary.high) == pytest.approx((0.9 - 3.182446 * sem, 0.9 + 3.182446 * sem), abs=1e-6)
    assert summary.n == 4


def test_one_seed_has_no_spread():
    assert stats.seed_summary([0.7]) == (0.7, None, None, None, 1)
    with pytest.raises(ValueError, match="no rates"):
        stats.seed_summary([])


def test_seed_interval_covers():
    draws = np.random.default_rng(1).normal(0.6, 0.05, size=(2000, 4))
    summaries = [stats.seed_summary(row) for row in draws]
    coverage = np.mean([summary.low <= 0.6 <= summary.high for summary in summaries])
    assert 0.935 <= coverage <= 0.965


def test_cluster_bootstrap_covers_where_an_item_interval_does_not():
    """30 domains of 20 items whose rates differ: intervals over items miss the mean of domains, over domains not."""
    draw = np.random.default_rng(2)
    domains = np.repeat(np.arange(30), 20)
    covered = {"clusters": 0, "items": 0}
    for trial in range(300):
        levels = draw.beta(2, 2, size=30)  # mean .5
        scores = (draw.random(600) < levels[domains]).astype(float)
        low, high = stats.cluster_bootstrap(scores, domains.tolist(), resamples=400, seed=trial)
        covered["clusters"] += low <= 0.5 <= high
        low, high = stats.wilson(scores.sum(), 600)
        covered["items"] += low <= 0.5 <= high
    assert 0.89 <= covered["clusters"] / 300 <= 0.98
    assert covered["items"] / 300 < 0.8


def test_cluster_bootstrap_weighs_items_and_is_reproducible():
    scores, clusters = [1.0] * 9 + [0.0], ["a"] * 9 + ["b"]
    low, high = stats.cluster_bootstrap(scores, clusters)
    assert (low, high) == (0.0, 1.0)
    assert stats.cluster_bootstrap(scores, clusters) == (low, high)
    assert stats.cluster_bootstrap([0.25] * 6, list("aabbcc")) == (0.25, 0.25)
    assert stats.cluster_bootstrap([1.0, 0.0], ["a", "a"]) is None
    with pytest.raises(ValueError, match="2 scores but 1"):
        stats.cluster_bootstrap([1.0, 0.0], ["a"])


@pytest.mark.parametrize(
    ("done", "totals", "same_as"),
    [
        ([1, 0, 1, 0] * 25, [1] * 100, (50 * 99 / 100, 99)),  # items alone: the variance of a sample, n - 1
        ([10, 0] * 5, [10] * 10, (4.5, 9)),  # the items of a cluster all alike: as many as there are clusters
        ([1] * 10, [10] * 10, (1, 10)),  # no cluster differs, which says nothing of how they would
        ([0] * 10, [10] * 10, (0, 10)),
        ([3], [10], (0.3, 1)),
        ([0, 3, 0], [0, 10, 0], (0.3, 1)),
        ([], [], (0, 0)),
        ([0], [0], (0, 0)),
    ],
)
def test_clustered_wilson_counts_as_many_items_as_vary_by_themselves(done, totals, same_as):
    assert stats.clustered_wilson(done, totals) == pytest.approx(stats.wilson(*same_as))


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=30))
def test_clustered_wilson_holds_the_rate_and_is_no_narrower_than_wilson(pairs):
    done, totals = [min(pair) for pair in pairs], [max(pair) for pair in pairs]
    low, high = stats.clustered_wilson(done, totals)
    plain = stats.wilson(sum(done), sum(totals))
    assert 0 <= low <= plain.low + 1e-12
    assert plain.high - 1e-12 <= high <= 1


def test_clustered_wilson_refuses_lists_of_different_lengths():
    with pytest.raises(ValueError, match="2 successes but 1 totals"):
        stats.clustered_wilson([1, 2], [3])
