"""docs/plans: every shipped config has a page, and each plan its section with the command that made it."""

import re
import shlex

import pytest

from benchmarks import plans

NOT_TRAINED = {"__init__", "common", "corpus", "eval"}
CONFIGS = {path.stem for path in (plans.FOLDER.parents[1] / "configs").glob("*.py")} - NOT_TRAINED


def test_every_shipped_config_is_planned():
    assert {plan.page for plan in plans.PLANS} == set(plans.PAGES) == CONFIGS
    assert {path.name for path in plans.FOLDER.iterdir()} == {f"{page}.md" for page in plans.PAGES}


@pytest.mark.parametrize("page", plans.PAGES)
def test_a_page_has_its_plans_and_is_written_again_as_it_is(page):
    path = plans.FOLDER / f"{page}.md"
    sections = plans.read_sections(path)
    commands = {plan.heading: plan.command for plan in plans.PLANS if plan.page == page}
    assert sections.keys() == commands.keys()
    for heading, command in commands.items():
        assert sections[heading].startswith(f"```bash\n{shlex.join(command)}\n```")
    assert plans.page_text(page, sections).partition("\n## ")[2] == path.read_text().partition("\n## ")[2]


# Of widths that fill a TPU's tiles.
@pytest.mark.parametrize("page", ["qwen32b_am", "llama8b_cheese"])
def test_memory_is_that_of_theory_and_little_is_computed_again_where_there_is_room(page):
    for heading, section in plans.read_sections(plans.FOLDER / f"{page}.md").items():
        if "does not fit" in section:
            continue
        compiled, theory = map(float, re.search(r"arguments ([\d.]+) GiB a chip \(theory ([\d.]+)\)", section).groups())
        assert theory <= compiled <= 1.02 * theory + 0.01
        peak, limit = map(float, re.search(r"peak ([\d.]+) of ([\d.]+): fits", section).groups())
        assert peak < limit
        if page == "qwen32b_am" and heading.startswith("v5p"):
            assert float(re.search(r"compiled ([\d.]+) times as many", section)[1]) <= 1.35


def test_the_state_of_32b_is_that_of_its_numbers():
    """2 bytes for each of the base, 12 for each of the adapter and its moments, in equal parts: on 16 chips."""
    theory = (2 * 32_763_876_352 + 12 * 536_870_912) / 16 / 2**30
    section = plans.read_sections(plans.FOLDER / "qwen32b_am.md")["v5e:4x4"]
    assert float(re.search(r"\(theory ([\d.]+)\)", section)[1]) == pytest.approx(theory, abs=0.01)


def test_the_32b_recipe_fits_on_the_smallest_slices_that_are_told():
    sections = plans.read_sections(plans.FOLDER / "qwen32b_am.md")
    fits = [plan for plan in plans.PLANS if plan.page == "qwen32b_am" and ": fits" in sections[plan.heading]]
    assert {"v5e:2x2", "v6e:2x2", "v5p:2x2x1"} <= {plan.topology for plan in fits}
    in_bf16 = {plan.topology for plan in fits if plans.INT8 not in plan.flags}
    assert {"v5e:2x4", "v6e:2x2", "v5p:2x2x1"} <= in_bf16 and "v5e:2x2" not in in_bf16
