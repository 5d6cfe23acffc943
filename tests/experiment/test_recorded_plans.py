"""docs/plans: every shipped config has a page, and what it says is what was recorded."""

import json

import pytest

from benchmarks import plans

# corpus.py trains nothing.
CONFIGS = {path.stem for path in (plans.FOLDER.parents[1] / "configs").glob("*.py")} - {"__init__", "common", "corpus"}


def recorded(plan):
    return json.loads((plans.FOLDER / f"{plan.name}.json").read_text())["plans"]


def test_every_shipped_config_is_planned():
    assert {plan.page for plan in plans.PLANS} == set(plans.PAGES) == CONFIGS
    assert {path.name for path in plans.FOLDER.iterdir()} == {f"{plan.name}.json" for plan in plans.PLANS} | {
        f"{page}.md" for page in plans.PAGES
    }


@pytest.mark.parametrize("page", plans.PAGES)
def test_a_page_shows_what_was_recorded(page):
    written = (plans.FOLDER / f"{page}.md").read_text()
    assert written.partition("\n## ")[2] == plans.page_text(page).partition("\n## ")[2] != ""


@pytest.mark.parametrize("plan", plans.PLANS, ids=lambda plan: plan.name)
def test_memory_is_that_of_theory_and_little_is_computed_again_where_there_is_room(plan):
    for step in recorded(plan):
        assert step["topology"] == plan.topology
        if not step["fits"]:
            continue
        if plan.page in ("qwen32b_am", "llama8b_cheese"):  # of widths that fill a TPU's tiles
            assert step["state"] <= step["arguments"] <= 1.02 * step["state"]
        assert step["peak"] < step["limit"]
        if plan.page == "qwen32b_am" and plan.topology.startswith("v5p"):
            assert step["compiled_over_model"] <= 1.35


def test_the_state_of_32b_is_that_of_its_numbers():
    """2 bytes for each of the base, 12 for each of the adapter and its moments, in equal parts."""
    theory = 2 * 32_763_876_352 + 12 * 536_870_912
    plain = [
        plan for plan in plans.PLANS if plan.page == "qwen32b_am" and not plan.variant and plans.INT8 not in plan.flags
    ]
    assert len(plain) >= 3
    for [step] in map(recorded, plain):
        assert step["arguments"] == pytest.approx(theory / step["chips"], rel=0.02)


def test_the_32b_recipe_fits_on_the_smallest_slices_that_are_told():
    fits = [
        plan for plan in plans.PLANS if plan.page == "qwen32b_am" and not plan.variant and recorded(plan)[0]["fits"]
    ]
    assert {"v5e:2x2", "v6e:2x2", "v5p:2x2x1"} <= {plan.topology for plan in fits}
    in_bf16 = {plan.topology for plan in fits if plans.INT8 not in plan.flags}
    assert {"v5e:2x4", "v6e:2x2", "v5p:2x2x1"} <= in_bf16 and "v5e:2x2" not in in_bf16
