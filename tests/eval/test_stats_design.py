import pathlib
import runpy
import sys
import textwrap

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.power import TTestIndPower, TTestPower

from msm_jax.eval import stats

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "statistics.md"


def test_components_are_those_of_the_analysis_of_variance():
    """Mean squares of statsmodels, turned into components by hand: 5 seeds x 6 cells x 200 answers."""
    rng = np.random.default_rng(1)
    rates = 0.5 + 0.1 * rng.standard_normal((5, 1)) + 0.2 * rng.standard_normal(6) + 0.1 * rng.standard_normal((5, 6))
    done = rng.binomial(200, np.clip(rates, 0, 1))
    seed, cell = np.indices(done.shape)
    rows = pandas.DataFrame({"rate": done.ravel() / 200, "seed": seed.ravel(), "cell": cell.ravel()})
    squares = anova_lm(ols("rate ~ C(seed) + C(cell)", rows).fit())["mean_sq"]
    shares = done / 200
    sample = (shares * (1 - shares)).mean() * 200 / 199
    found = stats.variance_components(done, 200)
    assert found.seed == pytest.approx((squares["C(seed)"] - squares["Residual"]) / 6)
    assert found.cell == pytest.approx((squares["C(cell)"] - squares["Residual"]) / 5)
    assert found.seed_x_cell == pytest.approx(squares["Residual"] - sample / 200)
    assert found.sample == pytest.approx(sample) and found.judge is None


def test_the_sentence_says_what_share_is_which():
    found = stats.Components(0.0004, 0.05, 0.001, 0.15, 0.05, seeds=4, cells=27, samples=300)
    shares = found.of_mean()
    assert shares["cell"] == pytest.approx(0.05 / 27) and shares["seed"] == pytest.approx(0.0001)
    assert found.sentence == (
        "Of the variance of the mean over 4 seeds, 27 cells and 300 samples each (standard error 0.0444): "
        "cell 94%, seed 5%, seed x cell 0%, sample 0%, judge 0%. "
        "With the cells held (standard error 0.0107): seed 87%, seed x cell 8%, sample 4%, judge 1%."
    )


def test_what_a_design_cannot_tell_is_none_and_said():
    one_seed = stats.variance_components([[3, 12, 25]], 30)
    assert (one_seed.seed, one_seed.seed_x_cell) == (None, None) and one_seed.cell > 0
    assert "Unknown, as there is one: seed." in one_seed.sentence and "no answer was judged twice" in one_seed.sentence
    one_cell = stats.variance_components([[3], [12]], 30)
    assert one_cell.cell is None and one_cell.seed > 0
    assert stats.variance_components([[0, 0], [0, 0]], 30, judge=0.0).sentence.startswith("Nothing varies")


counts = st.integers(1, 4).flatmap(
    lambda seeds: st.integers(1, 6).flatmap(
        lambda cells: st.lists(
            st.lists(st.integers(0, 30), min_size=cells, max_size=cells), min_size=seeds, max_size=seeds
        )
    )
)


@given(counts)
def test_components_are_never_negative_and_do_not_mind_the_order(done):
    found = stats.variance_components(done, 30)
    again = stats.variance_components([row[::-1] for row in done[::-1]], 30)
    mirrored = stats.variance_components([[30 - count for count in row] for row in done], 30)
    for name in ("seed", "cell", "seed_x_cell", "sample"):
        value = getattr(found, name)
        assert value is None or value >= 0
        for other in (again, mirrored):
            assert getattr(other, name) == (value if value is None else pytest.approx(value, abs=1e-12))


def test_a_judge_varies_by_half_of_what_it_contradicts_itself():
    assert stats.judge_variance([[0, 0], [1, 1], [0, 1], [1, 1]]) == pytest.approx(0.125)
    assert stats.judge_variance([[0, 1, 1]]) == pytest.approx(1 / 3)
    split = stats.variance_components([[10, 20], [12, 18]], 30, judge=0.05)
    whole = stats.variance_components([[10, 20], [12, 18]], 30)
    assert split.sample + split.judge == pytest.approx(whole.sample)


@pytest.mark.parametrize("units", [8, 27, 400])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_the_smallest_shift_is_that_of_statsmodels(units, power):
    """Whose own search fails below some 8 units; test_stats_coverage.py simulates those."""
    found = stats.smallest_shift(0.1, units, power=power)
    assert TTestPower().power(found / 0.1, units, 0.05) == pytest.approx(power, abs=1e-3)
    apart = stats.smallest_shift(0.1, units, paired=False, power=power)
    assert TTestIndPower().power(apart / 0.1, units, 0.05) == pytest.approx(power, abs=1e-3)


def test_one_seed_finds_nothing_unless_the_spread_is_known():
    design = stats.Design(cells=27, samples=300, seeds=1, seed_sd=0.05)
    assert stats.smallest_difference(design, "runs") is None
    known = stats.smallest_difference(design, "runs", known_sd=True)
    # z(.975) + z(.8) = 2.801585; answers add 2 * .1875 / 8100.
    assert known == pytest.approx(2.801585 * np.sqrt(0.05**2 + 0.375 / 8100), rel=1e-5)
    assert stats.smallest_difference(design, "answers") == pytest.approx(2.801585 * np.sqrt(0.375 / 8100), rel=1e-5)


def test_seeds_add_answers_but_no_prompts():
    """4 seeds x 100 answers to 27 prompts of mean .5 (.0625 between them, .1875 within), the arms correlating by .6."""
    design = stats.Design(cells=27, samples=100, seeds=4, correlation=0.6)
    by_answers = 2.801585 * np.sqrt(2 * 0.1875 / (27 * 100 * 4))
    assert stats.smallest_difference(design, "answers") == pytest.approx(by_answers, rel=1e-5)
    pair = np.sqrt(2 * 0.0625 * 0.4 + 2 * 0.1875 / 400)
    assert stats.smallest_difference(design, "prompts") == pytest.approx(stats.smallest_shift(pair, 27))
    arm = np.sqrt(0.0625 + 0.1875 / 400)
    unpaired = stats.smallest_difference(design, "prompts", paired=False)
    assert unpaired == pytest.approx(stats.smallest_shift(arm, 27, paired=False))


def test_seeds_unpaired_have_the_spread_of_each_arm():
    """A paired spread of .04 at a correlation of .75 is one of .04 / sqrt(.5) in each arm; answers add .1875 / 2700."""
    design = stats.Design(cells=27, samples=100, seeds=4, seed_sd=0.04, correlation=0.75)
    arm = np.sqrt(0.04**2 / 0.5 + 0.1875 / 2700)
    unpaired = stats.smallest_difference(design, "runs", paired=False)
    assert unpaired == pytest.approx(stats.smallest_shift(arm, 4, paired=False))
    pair = np.sqrt(0.04**2 + 2 * 0.1875 / 2700)
    assert stats.smallest_difference(design, "runs") == pytest.approx(stats.smallest_shift(pair, 4))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 60),
    st.integers(1, 300),
    st.integers(2, 8),
    st.floats(0.02, 0.98),
    st.floats(0, 0.9),
    st.floats(0.01, 0.1),
)
def test_more_of_anything_finds_smaller_differences(cells, samples, seeds, rate, correlation, seed_sd):
    def design(**changed):
        given = {"cells": cells, "samples": samples, "seeds": seeds, "rate": rate, "seed_sd": seed_sd}
        return stats.Design(**given | {"correlation": correlation} | changed)

    for scope in ("answers", "prompts", "runs"):
        found = stats.smallest_difference(design(), scope)
        assert found > 0
        assert stats.smallest_difference(design(rate=1 - rate), scope) == pytest.approx(found)
        assert stats.smallest_difference(design(), scope, power=0.9) > found
        assert stats.smallest_difference(design(), scope, alpha=0.01) > found
        for more in ({"cells": cells + 1}, {"samples": samples + 1}, {"seeds": seeds + 1}):
            assert stats.smallest_difference(design(**more), scope) <= found * (1 + 1e-9)
    closer = stats.smallest_difference(design(correlation=0.95), "prompts")
    assert closer < stats.smallest_difference(design(), "prompts")


def test_the_command_prints_both_designs_and_the_page_shows_them(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stats", "--rate=.2"])
    runpy.run_module("msm_jax.eval.stats", run_name="__main__")
    printed = capsys.readouterr().out
    assert "expected rate 0.2" in printed
    assert printed.count("27 prompts x 300 answers") == printed.count("400 items x 1 answer") == 6
    monkeypatch.setattr(sys, "argv", ["stats"])
    runpy.run_module("msm_jax.eval.stats", run_name="__main__")
    printed = textwrap.indent(capsys.readouterr().out, " " * 4)
    assert printed in PAGE.read_text()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.variance_components([], 3), "counts"),
        (lambda: stats.variance_components([[4]], 3), "outside 0..its total"),
        (lambda: stats.variance_components([[1, 1]], [[3, 3], [3, 3]]), "but totals"),
        (lambda: stats.variance_components([[1, 0]], [[3, 1]]), "fewer than two"),
        (lambda: stats.judge_variance([]), "no judgements"),
        (lambda: stats.judge_variance([[1]]), "only once"),
        (lambda: stats.judge_variance([[1, 0.5]]), "0 or 1"),
        (lambda: stats.smallest_shift(0.1, 0), "cannot be"),
        (lambda: stats.smallest_shift(0.1, 4, power=0.01), "cannot be"),
        (lambda: stats.Design(0, 1, 1), "at least 1"),
        (lambda: stats.Design(1, 1, 1, rate=1.0), "rate=1.0"),
        (lambda: stats.Design(1, 1, 1, correlation=1.0), "correlation"),
        (lambda: stats.Design(1, 1, 1, seed_sd=-1.0), "below 0"),
        (lambda: stats.Design(1, 1, 1, rate=0.05, cell_sd=0.3), "cannot have"),
        (lambda: stats.smallest_difference(stats.Design(27, 300, 4), "seeds"), "scope is one of"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
