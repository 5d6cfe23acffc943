"""Arms are data: what a recipe says is what the arm's steps read."""

import pathlib

import pytest

from msm_jax import launch
from msm_jax.config.arms import RECIPES, arms, check_recipes
from msm_jax.corpus.specs import read_spec
from msm_jax.errors import UserError

ROOT = pathlib.Path(launch.__file__).parents[1]
SPECS = [read_spec(str(ROOT / "specs" / f"{name}.md")) for name in ("pro_affordability", "pro_america")]
MIXTURES = {"msm": {"msm": 0.75, "replay": 0.25}, "aft": {"aft": 0.5, "instruction": 0.5}}


def steps(name, **own):
    """[section, {corpus: share}] of each step of each arm of a recipe."""
    made = arms([name], own, MIXTURES, SPECS)
    return [
        [(step.section, {corpus.name: share for corpus, share in step.shares.items()}) for step in arm.steps]
        for arm in made
    ]


MSM = [("msm", {f"msm-{spec.name}": 0.75, "replay": 0.25}) for spec in SPECS]
BOTH, ALONE = ("aft", {"aft": 0.5, "instruction": 0.5}), ("aft", {"instruction": 0.5})


@pytest.mark.parametrize(
    ("name", "expected", "labels"),
    [
        ("baseline", [[ALONE]], ["Baseline"]),
        ("aft", [[BOTH]], ["AFT"]),
        ("aft_cot", [[("aft", {"aft_cot": 0.5, "instruction": 0.5})]], ["AFT CoT"]),
        ("msm", [[msm, ALONE] for msm in MSM], ["MSM affordability", "MSM America"]),
        ("msm_only", [[msm] for msm in MSM], ["MSM affordability alone", "MSM America alone"]),
        ("msm_aft", [[msm, BOTH] for msm in MSM], ["MSM affordability + AFT", "MSM America + AFT"]),
    ],
)
def test_the_arms_of_the_paper(name, expected, labels):
    assert steps(name) == expected
    assert [arm.label for arm in arms([name], {}, MIXTURES, SPECS)] == labels


def test_recipes_of_a_configuration():
    msm, aft = "msm@pro_america", "aft@pro_affordability"
    cross = (("msm", {"msm": msm}), ("aft", {"aft": aft}))
    expected = [[MSM[1], ("aft", {"aft-pro_affordability": 0.5, "instruction": 0.5})]]
    assert steps("cross", cross=cross) == expected
    dose = (("aft", {"aft": {"aft": 3, aft: 1}}),)
    expected = ("aft", {"aft": 0.375, "aft-pro_affordability": 0.125, "instruction": 0.5})
    assert steps("dose", dose=dose) == [[expected]]
    interleaved = (("aft", {"instruction": {"instruction": 0.5, "msm": 0.5}}),)
    read = [{"aft": 0.5, "instruction": 0.25, f"msm-{spec.name}": 0.25} for spec in SPECS]
    assert steps("interleaved", interleaved=interleaved) == [[("aft", shares)] for shares in read]
    [one, other] = arms(["interleaved"], {"interleaved": interleaved}, MIXTURES, SPECS)
    assert (one.key, other.label) == ("interleaved-pro_affordability", "interleaved (America)")


def test_rows_keep_the_share_of_the_source_that_they_stand_for():
    for name in RECIPES:
        for arm in arms([name], {}, MIXTURES, SPECS):
            for step in arm.steps:
                left = 0.5 if name in ("baseline", "msm") and step.section == "aft" else 1.0
                assert sum(step.shares.values()) == left


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ((), "it is a tuple of steps"),
        ("msm", "it is a tuple of steps"),
        (("aft",), "'aft' is no step"),
        ((("pretrain", {}),), "'pretrain' is no section; choose one of msm, aft"),
        ((("aft", {"atf": ""}),), "aft: 'atf' is not in its mixture, which has aft, instruction"),
        ((("aft", {"aft": "aft_cot"}),), "aft: there is no aft_cot; choose from msm, aft, instruction"),
        ((("aft", {"aft": "pretraining"}),), "aft: there is no pretraining"),
        ((("aft", {"aft": "instruction@rules"}),), "aft: there is no instruction@rules"),
        ((("aft", {"aft": {"aft": 0}}),), "write a source, or sources with their parts"),
        ((("aft", {"aft": {}}),), "write a source, or sources with their parts"),
        ((("aft", {"aft": {"": 0.5, "aft": 0.5}}),), "write a source, or sources with their parts"),
        ((("aft", {"aft": "aft@"}),), "aft: there is no aft@"),
        ((("aft", {"aft": 3}),), "write a source, or sources with their parts"),
        ((("aft", {"aft": "", "instruction": ""}),), "its step aft has no rows; leave the step out"),
    ],
)
def test_a_recipe_that_cannot_be(recipe, told):
    with pytest.raises(UserError) as caught:
        check_recipes({"mine": recipe}, MIXTURES, ["pretraining", "msm", "aft", "instruction", "replay"])
    assert str(caught.value).startswith("config.recipes.mine") and told in str(caught.value)


def test_names_of_recipes():
    for name in ("msm", "a b"):
        with pytest.raises(UserError, match="choose another name"):
            check_recipes({name: RECIPES["aft"]}, MIXTURES, ["aft"])
    with pytest.raises(UserError, match="config.recipes.x has aft@rules, and config.specs has no rules"):
        steps("x", x=(("aft", {"aft": "aft@rules"}),))
