import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW, ttost_paired

from msm_jax.eval import stats

share = st.integers(0, 20).map(lambda k: k / 20)
pairs_of_rates = st.lists(st.tuples(share, share), min_size=1, max_size=30)
pairs_of_labels = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60)
RNG = np.random.default_rng(0)
RATES = RNG.random((2, 27))


@pytest.fixture(scope="module", autouse=True)
def no_collection():
    """multipletests collects garbage each time, which takes longer than all else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gc.collect", lambda: 0)
        yield


def test_seeds_are_the_paired_t_test():
    found = stats.seed_difference(*RATES[:, :4])
    expected = scipy.stats.ttest_rel(*RATES[:, :4])
    assert (found.low, found.high) == pytest.approx(np.clip(expected.confidence_interval(), -1, 1))
    assert found.p_value == pytest.approx(expected.pvalue) and found.n == 4
    assert found.correlation == pytest.approx(scipy.stats.pearsonr(*RATES[:, :4]).statistic)


def test_one_seed_and_equal_differences_have_no_interval():
    one = stats.seed_difference([0.7], [0.5])
    assert one.estimate == pytest.approx(0.2) and (one.low, one.high, one.p_value) == (None, None, None)
    assert "there is one" in one.speaks_of
    equal = stats.seed_difference([0.7, 0.8], [0.5, 0.6])
    assert equal.low is None and "all differences are equal" in equal.speaks_of


def test_seed_summary_reads_as_an_estimate():
    summary = stats.seed_summary([0.9, 1.0, 0.8, 0.9])
    assert summary.estimate == summary.mean and "training runs" in summary.speaks_of


def test_items_have_the_exact_mcnemar_test():
    """12 won, 4 lost, 84 alike: twice the binomial tail of 4 or fewer of 16."""
    first = [1] * 12 + [0] * 4 + [1] * 50 + [0] * 34
    second = [0] * 12 + [1] * 4 + [1] * 50 + [0] * 34
    found = stats.item_difference(first, second)
    assert found.p_value == pytest.approx(scipy.stats.binomtest(4, 16).pvalue)
    # Bonett & Price: (13 - 5) / 102 -+ z sqrt((13 + 5) / 102 - (8 / 102)^2) / sqrt(102)
    center, se = 8 / 102, np.sqrt((18 / 102 - (8 / 102) ** 2) / 102)
    assert (found.low, found.high) == pytest.approx((center - 1.959964 * se, center + 1.959964 * se), abs=1e-6)
    assert found.estimate == pytest.approx(0.08)


def test_items_of_more_than_two_scores_have_a_t_interval_and_the_sign_test():
    first, second = np.round(RATES * 2) / 2
    found = stats.item_difference(first, second)
    expected = scipy.stats.ttest_rel(first, second).confidence_interval()
    assert (found.low, found.high) == pytest.approx(expected)
    won, lost = int((first > second).sum()), int((first < second).sum())
    assert found.p_value == pytest.approx(scipy.stats.binomtest(won, won + lost).pvalue)


def test_items_that_never_differ_still_have_an_interval():
    found = stats.item_difference([1] * 400, [1] * 400)
    assert found.estimate == 0 and -0.01 < found.low < 0 < found.high < 0.01 and found.p_value == 1
    assert found.correlation is None


def test_pairing_is_narrower_where_the_arms_go_together():
    hard = RNG.random(400) < 0.5
    first, second = hard | (RNG.random(400) < 0.1), hard & (RNG.random(400) < 0.9)
    found = stats.item_difference(first, second)
    apart = np.sqrt(np.var(first) / 400 + np.var(second) / 400) * 1.96
    assert found.correlation > 0.7 and found.high - found.low < 1.2 * apart  # the unpaired one is 2 * apart wide


@given(pairs_of_rates)
def test_differences_hold_their_estimate_and_change_sign(pairs):
    first, second = zip(*pairs, strict=True)
    for difference in (stats.seed_difference, stats.item_difference):
        there, back = difference(first, second), difference(second, first)
        assert back.estimate == pytest.approx(-there.estimate)
        assert back.p_value == pytest.approx(there.p_value)
        if there.low is not None:
            assert -1 <= there.low <= there.estimate + 1e-12 and there.estimate <= there.high + 1e-12 <= 1 + 1e-12
            assert (back.low, back.high) == pytest.approx((-there.high, -there.low))


@given(pairs_of_labels)
def test_items_of_labels_stay_in_bounds_and_mirror_when_labels_are_swapped(pairs):
    first, second = map(np.array, zip(*pairs, strict=True))
    found, swapped = stats.item_difference(first, second), stats.item_difference(1 - first, 1 - second)
    assert -1 <= found.low <= found.estimate <= found.high <= 1 and 0 < found.p_value <= 1
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    wider = stats.item_difference(first, second, confidence=0.99)
    assert wider.low <= found.low and found.high <= wider.high


def test_difference_in_differences_over_seeds_and_items():
    own, cross = (RATES[0, :8], RATES[1, :8]), (RATES[0, 8:16], RATES[1, 8:16])
    moved, crossed = own[0] - own[1], cross[0] - cross[1]
    found = stats.seed_difference_in_differences(own, cross)
    expected = scipy.stats.ttest_1samp(moved - crossed, 0)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval())
    assert found.p_value == pytest.approx(expected.pvalue)
    by_item = stats.item_difference_in_differences(own, cross)
    welch = CompareMeans(DescrStatsW(moved), DescrStatsW(crossed)).tconfint_diff(usevar="unequal")
    assert (by_item.low, by_item.high) == pytest.approx(welch)
    back = stats.item_difference_in_differences(cross, own)
    assert (back.estimate, back.low) == pytest.approx((-by_item.estimate, -by_item.high))


def test_difference_in_differences_without_spread():
    found = stats.item_difference_in_differences(([1.0, 1.0], [0.0, 0.0]), ([0.5, 0.5], [0.5, 0.5]))
    assert (found.estimate, found.low, found.high) == (1.0, None, None)


def test_floor_by_hand():
    """400 items, 8 flip: the two rates differ with variance 8 / 400^2."""
    first = np.r_[np.ones(200), np.zeros(200)]
    second = first.copy()
    second[196:204] = 1 - second[196:204]
    floor = stats.remeasurement_floor([first, second])
    assert floor.sd == pytest.approx(np.sqrt(8) / 400)
    assert floor.flips.estimate == pytest.approx(0.02) and floor.flips.low == stats.wilson(8, 400).low
    assert not floor.is_above(1.9 * floor.sd) and floor.is_above(-2.0 * floor.sd)
    assert not floor.is_above(2.0 * floor.sd, confidence=0.99)


def test_floor_sees_what_moves_a_whole_measurement():
    """Flips that go one way in one batch, as rounding in another batch does: 1.8 % of 400, yet SD .0123."""
    together = [np.r_[np.ones(200 + shift), np.zeros(200 - shift)] for shift in (0, 7, -3, 4)]
    floor = stats.remeasurement_floor(together)
    rates = [scores.mean() for scores in together]
    assert floor.sd == pytest.approx(np.sqrt(2) * np.std(rates, ddof=1))


@given(st.lists(pairs_of_labels.filter(lambda pairs: len(pairs) > 1), min_size=1, max_size=1))
def test_floor_does_not_mind_the_order(drawn):
    first, second = zip(*drawn[0], strict=True)
    there, back = stats.remeasurement_floor([first, second]), stats.remeasurement_floor([second, first])
    assert there == back and 0 <= there.flips.low <= there.flips.estimate <= there.flips.high <= 1


def test_holm_adjusts_the_others_and_leaves_the_primary():
    names, p_values = ["main", "a", "b", "c"], [0.04, 0.01, 0.02, 0.9]
    found = {contrast.name: contrast for contrast in stats.holm(names, p_values, primary="main")}
    assert found["main"].adjusted == 0.04 and found["main"].significant and found["main"].primary
    assert [found[name].adjusted for name in "abc"] == pytest.approx([0.03, 0.04, 0.9])
    (alone,) = stats.holm(["main"], [0.04], primary="main")
    assert alone.significant


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_is_monotone_and_does_not_mind_the_order(p_values, random):
    names = [f"arm {i}" for i in range(len(p_values))]
    found = stats.holm(names, p_values)
    assert [contrast.adjusted for contrast in found] == pytest.approx(multipletests(p_values, method="holm")[1])
    ordered = sorted(found, key=lambda contrast: contrast.p_value)
    assert all(a.adjusted <= b.adjusted for a, b in zip(ordered, ordered[1:], strict=False))
    assert all(contrast.p_value <= contrast.adjusted + 1e-12 <= 1 + 1e-12 for contrast in found)
    mixed = list(zip(names, p_values, strict=True))
    random.shuffle(mixed)
    again = {contrast.name: contrast.adjusted for contrast in stats.holm(*zip(*mixed, strict=True))}
    assert again == pytest.approx({contrast.name: contrast.adjusted for contrast in found})


def test_equivalence_is_two_one_sided_tests():
    found = stats.equivalence(*RATES, margin=0.3, unit="cell")
    assert found.p_value == pytest.approx(ttost_paired(*RATES, -0.3, 0.3)[0])
    assert (found.low, found.high) == pytest.approx(scipy.stats.ttest_rel(*RATES).confidence_interval(0.9))
    assert found.verdict == "unchanged within +-0.3" and (-0.3 < found.low) and (found.high < 0.3)
    assert stats.equivalence(*RATES, margin=0.1, unit="cell").verdict == "not shown"


def test_a_ceiling_is_unchanged_by_items_but_not_by_seeds():
    """Items that never differ are many observations; seeds that never differ leave the spread of seeds unknown."""
    assert stats.equivalence([1] * 400, [1] * 400, 0.05, "item").verdict == "unchanged within +-0.05"
    assert stats.equivalence([1.0] * 400, [1.0] * 400, 0.05, "seed").verdict == "not shown"
    assert stats.equivalence([1] * 10, [1] * 10, 0.05, "item").verdict == "not shown"  # too few


@given(pairs_of_labels, st.floats(0.01, 1.0), st.sampled_from(["item", "cell"]))
def test_equivalence_is_shown_just_where_its_tests_are_significant(pairs, margin, unit):
    first, second = zip(*pairs, strict=True)
    found = stats.equivalence(first, second, margin, unit)
    assert stats.equivalence(second, first, margin, unit).verdict == found.verdict
    if found.p_value is None:
        assert found.verdict == "not shown"
    elif len(pairs) > 5:
        assume(abs(found.p_value - 0.05) > 1e-9)
        assert (found.verdict == "not shown") == (found.p_value > 0.05)
    if found.verdict != "not shown":
        assert stats.equivalence(first, second, margin + 0.1, unit).verdict != "not shown"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.seed_difference([], []), "list of rates"),
        (lambda: stats.seed_difference([0.5], [0.5, 0.6]), "1 values but 2"),
        (lambda: stats.seed_difference([1.5], [0.5]), "outside 0..1"),
        (lambda: stats.item_difference([1], [float("nan")]), "outside 0..1"),
        (lambda: stats.item_difference([0.5], [None]), "outside 0..1"),
        (lambda: stats.seed_difference_in_differences(([1], [1]), ([1, 1], [1, 1])), "1 seeds but 2"),
        (lambda: stats.item_difference_in_differences(([1], [2]), ([1], [1])), "own value: a rate is outside"),
        (lambda: stats.remeasurement_floor([[1, 0]]), "2 or more"),
        (lambda: stats.remeasurement_floor([[1, 0], [1, 2]]), "outside 0..1"),
        (lambda: stats.holm([], []), "0 names"),
        (lambda: stats.holm(["a"], [0.1, 0.2]), "1 names but 2"),
        (lambda: stats.holm(["a", "a"], [0.1, 0.2]), "same name"),
        (lambda: stats.holm(["a"], [1.1]), "outside 0..1"),
        (lambda: stats.holm(["a"], [0.1], primary="b"), "is none of a"),
        (lambda: stats.equivalence([1], [1], 0.0, "item"), "margin"),
        (lambda: stats.equivalence([1], [1], 0.1, "prompt"), "unit is one of item, cell, seed"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
