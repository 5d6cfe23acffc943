import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.proportion import proportion_confint

from msm_jax.eval import stats

pairs_of_labels = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=80)


def gold(true_ones, ones, true_zeros, zeros):
    """(judge, person): the judge finds `true_ones` of the person's `ones`, and `true_zeros` of the `zeros`."""
    judge = [1] * true_ones + [0] * (ones - true_ones) + [0] * true_zeros + [1] * (zeros - true_zeros)
    return judge, [1] * ones + [0] * zeros


def test_kappa_and_its_standard_error_are_those_of_statsmodels():
    judge, person = gold(40, 50, 90, 100)
    found = stats.agreement(judge, person)
    expected = cohens_kappa([[90, 10], [10, 40]])
    assert found.table == ((90, 10), (10, 40))
    assert found.kappa.estimate == pytest.approx(expected.kappa)
    # Symmetric about log(1 - kappa), with the same width at first order.
    half = np.log((1 - found.kappa.low) / (1 - found.kappa.high)) / 2
    assert half == pytest.approx(1.959964 * expected.std_kappa / (1 - expected.kappa))
    assert (1 - found.kappa.low) * (1 - found.kappa.high) == pytest.approx((1 - expected.kappa) ** 2)
    assert (found.agree.low, found.agree.high) == pytest.approx(proportion_confint(130, 150, method="wilson"))


def test_agreement_without_a_difference_or_without_two_labels():
    perfect = stats.agreement([0, 1, 1, 0], [0, 1, 1, 0])
    assert (perfect.kappa.estimate, perfect.kappa.low) == (1.0, None)
    assert perfect.agree.low == stats.wilson(4, 4).low
    one_label = stats.agreement([0, 0], [0, 0])
    assert one_label.kappa.estimate is None and "same label" in one_label.kappa.speaks_of
    constant = stats.agreement([1, 1, 1], [0, 0, 1])
    assert (constant.kappa.estimate, constant.kappa.low) == (0.0, None)


@given(pairs_of_labels)
def test_agreement_does_not_mind_who_is_first_or_which_label_is_1(pairs):
    first, second = map(np.array, zip(*pairs, strict=True))
    found = stats.agreement(first, second)
    assert 0 <= found.agree.low <= found.agree.estimate <= found.agree.high <= 1
    for again in (stats.agreement(second, first), stats.agreement(1 - first, 1 - second)):
        for name in ("estimate", "low", "high"):
            value = getattr(found.kappa, name)
            assert getattr(again.kappa, name) == (value if value is None else pytest.approx(value))
    if found.kappa.low is not None:
        assert -1 <= found.kappa.low <= found.kappa.estimate <= found.kappa.high < 1 + 1e-12


def test_error_rates_against_a_person():
    found = stats.accuracy(*gold(45, 50, 92, 100))
    assert (found.ones, found.zeros) == (50, 100)
    assert (found.sensitivity.estimate, found.specificity.estimate) == (0.9, 0.92)
    assert (found.sensitivity.low, found.sensitivity.high) == stats.wilson(45, 50)
    assert (found.specificity.low, found.specificity.high) == stats.wilson(92, 100)
    none = stats.accuracy([0, 1], [0, 0])
    assert none.sensitivity.estimate is None and "no transcript" in none.sensitivity.speaks_of


def test_corrected_rate_by_hand():
    """.3 of 1,000; 90 of 100 and 190 of 200: (.3 + .95 - 1) / (.9 + .95 - 1) = .294118. The interval as the paper's
    appendix has it (arXiv 2511.21140), written out."""
    found = stats.corrected_rate(300, 1000, stats.accuracy(*gold(90, 100, 190, 200)))
    assert found.estimate == pytest.approx(0.25 / 0.85) and found.raw == 0.3 and found.reason is None
    z2 = 3.841459
    p, q1, q0 = (300 + z2 / 2) / (1000 + z2), 91 / 102, 191 / 202
    theta = (p + q0 - 1) / (q0 + q1 - 1)
    v, v1, v0 = p * (1 - p) / (1000 + z2), q1 * (1 - q1) / 102, q0 * (1 - q0) / 202
    shift = 2 * z2 * (theta * v1 - (1 - theta) * v0)
    half = z2**0.5 * (v + theta**2 * v1 + (1 - theta) ** 2 * v0) ** 0.5 / (q0 + q1 - 1)
    assert (found.low, found.high) == pytest.approx((theta + shift - half, theta + shift + half), abs=1e-6)


def test_a_perfect_judge_of_many_labels_leaves_the_rate_and_its_interval():
    found = stats.corrected_rate(300, 1000, stats.accuracy(*gold(100_000, 100_000, 100_000, 100_000)))
    assert found.estimate == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx(proportion_confint(300, 1000, method="agresti_coull"), abs=1e-3)


def test_a_rate_about_the_false_alarms_is_corrected_to_nothing_one_far_below_not_at_all():
    found = stats.corrected_rate(40, 1000, stats.accuracy(*gold(45, 50, 95, 100)))
    assert (found.estimate, found.low) == (0.0, 0.0) and 0 < found.high < 0.1
    many_alarms, few_hits = stats.accuracy(*gold(45, 50, 80, 100)), stats.accuracy(*gold(80, 100, 45, 50))
    assert "does not fit its false alarms" in stats.corrected_rate(0, 1000, many_alarms).reason
    assert "does not fit its sensitivity" in stats.corrected_rate(1000, 1000, few_hits).reason


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (gold(25, 50, 50, 100), "too near to 1"),
        (gold(10, 50, 20, 100), "too near to 1"),  # worse than a coin: labels the wrong way round?
        (gold(3, 4, 3, 4), "too near to 1 for 4 and 4 labels"),  # good, but hardly known
        (gold(0, 0, 90, 100), "0 of 1 and 100 of 0"),
        (gold(40, 50, 0, 0), "50 of 1 and 0 of 0"),
    ],
)
def test_no_correction_by_a_judge_that_is_not_shown_to_be_better_than_a_coin(labels, reason):
    found = stats.corrected_rate(300, 1000, stats.accuracy(*labels))
    assert (found.estimate, found.low, found.high, found.raw) == (None, None, None, 0.3)
    assert reason in found.reason


@given(st.integers(30, 50), st.integers(60, 100), st.integers(0, 200))
def test_corrected_rates_stay_in_bounds_grow_and_mirror(right_ones, right_zeros, successes):
    judge = stats.accuracy(*gold(right_ones, 50, right_zeros, 100))
    mirrored = stats.accuracy(*gold(right_zeros, 100, right_ones, 50))
    found = stats.corrected_rate(successes, 200, judge)
    if found.estimate is None:
        return
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    other = stats.corrected_rate(200 - successes, 200, mirrored)
    assert (other.estimate, other.low, other.high) == pytest.approx((1 - found.estimate, 1 - found.high, 1 - found.low))
    more = stats.corrected_rate(min(200, successes + 1), 200, judge)
    if more.estimate is not None:
        assert more.estimate >= found.estimate and more.high >= found.high


def test_errors_that_differ_by_arm_are_found_and_corrected_by_arm():
    """A parser that misses 2 % in one arm and 30 % in the other."""
    judge, person, arms = [], [], []
    for arm, labels in {"aft": gold(59, 60, 90, 100), "msm": gold(42, 60, 91, 100)}.items():
        judge, person, arms = judge + labels[0], person + labels[1], arms + [arm] * 160
    by_arm = stats.accuracy_by_arm(judge, person, arms)
    assert list(by_arm) == ["aft", "msm"] and by_arm["msm"].sensitivity.estimate == 0.7
    found = stats.compare_errors(by_arm)
    assert found.sensitivity_p == pytest.approx(scipy.stats.fisher_exact([[59, 1], [42, 18]]).pvalue)
    assert found.differ and found.sentence == "The judge's sensitivity differs by arm: correct each arm by its own."
    assert found.specificity_p > 0.5
    rates = [stats.corrected_rate(100, 400, by_arm[arm]).estimate for arm in by_arm]
    assert rates[1] > rates[0] + 0.03


def test_errors_of_three_arms_and_of_arms_without_examples():
    alike = {arm: stats.accuracy(*gold(45, 50, 90, 100)) for arm in "abc"}
    found = stats.compare_errors(alike)
    assert not found.differ and found.sensitivity_p > 0.9
    apart = alike | {"c": stats.accuracy(*gold(20, 50, 90, 100))}
    assert stats.compare_errors(apart).differ
    assert stats.compare_errors(apart) == stats.compare_errors(apart)  # the random tables have a seed
    unknown = stats.compare_errors({"a": alike["a"], "b": stats.accuracy(*gold(0, 0, 90, 100))})
    assert unknown.sensitivity_p is None and "Sensitivity could not be compared" in unknown.sentence
    perfect = stats.accuracy(*gold(50, 50, 100, 100))
    assert stats.compare_errors({"a": perfect, "b": perfect}).sensitivity_p == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.agreement([], []), "as many labels"),
        (lambda: stats.agreement([1], [1, 0]), "1 and 2"),
        (lambda: stats.agreement([1], [2]), "labels are 0 or 1"),
        (lambda: stats.accuracy(["yes"], ["no"]), "labels are 0 or 1"),
        (lambda: stats.accuracy_by_arm([1, 0], [1, 0], ["a"]), "2 labels but 1 arms"),
        (lambda: stats.compare_errors({"a": stats.accuracy([1], [1])}), "two arms or more, got 1"),
        (lambda: stats.corrected_rate(3, 2, stats.accuracy([1], [1])), "outside 0..n=2"),
        (lambda: stats.corrected_rate(0, 0, stats.accuracy([1], [1])), "n > 0"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
