import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from msm_jax.eval import stats

cells = st.lists(
    st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=1, max_size=27
)


def columns(pairs):
    return [done for done, _ in pairs], [n for _, n in pairs]


def test_one_cell_has_the_interval_of_agresti_and_coull():
    low, high = proportion_confint(21, 300, method="agresti_coull")
    found = stats.cell_mean([21], [300])
    assert (found.these.low, found.these.high) == pytest.approx((low, high))
    assert found.like_these.low is None and "no interval" in found.like_these.speaks_of


def test_cells_as_strata_by_hand():
    """Price & Bonett: two cells share z^2 = 3.841459 added answers; 5 + .960365 of 10 + 1.920729, 2 + .960365 of 20."""
    first, second = 5.960365 / 11.920729, 2.960365 / 21.920729
    se = np.sqrt(first * (1 - first) / 11.920729 + second * (1 - second) / 21.920729) / 2
    found = stats.cell_mean([5, 2], [10, 20]).these
    assert found.estimate == pytest.approx(0.3)
    center = (first + second) / 2
    assert (found.low, found.high) == pytest.approx((center - 1.959964 * se, center + 1.959964 * se), abs=1e-6)


def test_cells_as_clusters_are_the_t_interval_of_their_rates():
    done = [3, 12, 30, 9, 22, 17]
    found = stats.cell_mean(done, [30] * 6).like_these
    expected = scipy.stats.ttest_1samp(np.array(done) / 30, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx(expected)


def test_a_floor_of_nothing_still_has_a_width():
    """27 x 300 answers, none harmful: as wide as Wilson's of 0 in 8,100, nearly."""
    found = stats.cell_mean([0] * 27, [300] * 27)
    assert found.these.low == 0 and stats.wilson(0, 8100).high < found.these.high < 1.5 * stats.wilson(0, 8100).high
    assert found.like_these.low is None


def test_a_missing_cell_is_named_and_its_rate_is_none():
    """UKGovernmentBEIS/inspect_ai#4286: a cell whose judgements all failed."""
    found = stats.cell_mean([3, 0, 6], [10, 0, 10], names=["leak", "murder", "exfiltration"])
    assert found.missing == ("murder",) and found.rates == (0.3, None, 0.6)
    assert found.these.estimate == pytest.approx(0.45)
    for speaking in (found.these, found.like_these):
        assert "2 prompts (1 without a judged answer: murder)" in speaking.speaks_of
    apart = stats.cell_difference([3, 1, 6], [10, 10, 10], [1, 0, 5], [10, 0, 10], names=["a", "b", "c"])
    assert apart.missing == ("b",) and apart.like_these.n == 2 and "missing" not in apart.these.speaks_of
    assert apart.these.estimate == pytest.approx(0.15)


@given(cells, st.randoms())
def test_cell_mean_holds_its_estimate_and_does_not_mind_the_order(pairs, random):
    found = stats.cell_mean(*columns(pairs))
    assert 0 <= found.these.low <= found.these.estimate <= found.these.high <= 1
    if found.like_these.low is not None:
        assert 0 <= found.like_these.low <= found.like_these.estimate <= found.like_these.high <= 1
    random.shuffle(pairs)
    again = stats.cell_mean(*columns(pairs))
    for name in ("estimate", "low", "high"):
        assert getattr(again.these, name) == pytest.approx(getattr(found.these, name))


@given(cells)
def test_cell_mean_mirrors_and_grows(pairs):
    done, n = columns(pairs)
    found = stats.cell_mean(done, n).these
    mirrored = stats.cell_mean([total - count for count, total in pairs], n).these
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low))
    room = next((i for i, (count, total) in enumerate(pairs) if count < total), None)
    if room is not None:
        more = stats.cell_mean([count + (i == room) for i, count in enumerate(done)], n).these
        assert more.estimate > found.estimate and more.low >= found.low - 1e-12 and more.high >= found.high - 1e-12
    wider = stats.cell_mean(done, n, confidence=0.99).these
    assert wider.low <= found.low and found.high <= wider.high


def test_cell_difference_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    first, second = rng.binomial(300, rng.random(27)), rng.binomial(300, rng.random(27))
    found = stats.cell_difference(first, [300] * 27, second, [300] * 27).like_these
    expected = scipy.stats.ttest_rel(first / 300, second / 300)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval())
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.correlation == pytest.approx(scipy.stats.pearsonr(first, second).statistic)


@given(cells, st.integers(0, 100))
def test_cell_difference_changes_its_sign_with_the_order_of_the_arms(pairs, seed):
    done, n = columns(pairs)
    other = np.random.default_rng(seed).binomial(n, 0.4)
    there, back = stats.cell_difference(done, n, other, n), stats.cell_difference(other, n, done, n)
    assert -1 <= there.these.low <= there.these.estimate <= there.these.high <= 1
    assert (back.these.low, back.these.high) == pytest.approx((-there.these.high, -there.these.low))
    if there.like_these.low is not None:
        assert (back.like_these.low, back.like_these.high) == pytest.approx(
            (-there.like_these.high, -there.like_these.low)
        )
        assert back.like_these.p_value == pytest.approx(there.like_these.p_value)


def test_bounds_of_missing_judgements():
    """inspect_ai#4286: 10 answers, 3 judgements failed, 5 of the others harmful."""
    found = stats.missing_bounds([5], [7], [10])
    assert (found.estimate, found.low, found.high) == pytest.approx((5 / 7, 0.5, 0.8))
    assert (found.judged, found.missing) == (7, 3) and "3 of 10 judgements are missing" in found.speaks_of
    nothing = stats.missing_bounds([5, 0], [10, 0], [10, 10])
    assert (nothing.estimate, nothing.low, nothing.high) == (None, 0.25, 0.75)
    assert stats.missing_bounds([5], [10], [10]).low == stats.missing_bounds([5], [10], [10]).high == 0.5


@given(cells, st.lists(st.integers(0, 50), min_size=27, max_size=27))
def test_bounds_hold_the_complete_case_rate(pairs, lost):
    done, judged = columns(pairs)
    asked = [n + more for n, more in zip(judged, lost, strict=False)]
    found = stats.missing_bounds(done, judged, asked)
    assert 0 <= found.low <= found.estimate + 1e-12 and found.estimate <= found.high + 1e-12 <= 1 + 2e-12
    assert found.judged + found.missing == sum(asked)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.cell_mean([], []), "list of counts"),
        (lambda: stats.cell_mean([3], [2]), "outside 0..its total"),
        (lambda: stats.cell_mean([-1], [2]), "outside 0..its total"),
        (lambda: stats.cell_mean([float("nan")], [2]), "outside 0..its total"),
        (lambda: stats.cell_mean([1, 2], [3]), "2 counts of successes but 1 totals"),
        (lambda: stats.cell_mean([0, 0], [0, 0]), "no cell has a judged answer"),
        (lambda: stats.cell_mean([1], [2], names=["a", "b"]), "2 names for 1 cells"),
        (lambda: stats.cell_mean([1], [2], confidence=95), "confidence"),
        (lambda: stats.cell_difference([1], [2], [1, 1], [2, 2]), "1 cells but 2"),
        (lambda: stats.missing_bounds([1], [2], [1]), "outside 0..its total"),
        (lambda: stats.missing_bounds([0], [0], [0]), "nothing was asked"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
