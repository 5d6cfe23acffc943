import base64
import html
import html.parser
import json
import re
import subprocess
import sys

import pytest

from msm_jax.eval import plots
from msm_jax.eval.report import table, write_report
from msm_jax.eval.results import cell, findings, number, ordered_arms, signed

AMERICA = ("msm_aft", "pro_america")
AFFORDABILITY = ("msm_aft", "pro_affordability")


def set_rates(result, arm, evaluation, rates):
    """Sets the rate of each seed of an arm."""
    for score in result["scores"]:
        if (score["arm"], score["spec"], score["eval"]) == (*arm, evaluation):
            score["rate"] = rates[score["seed"]]


def keep(result, wanted):
    result["scores"] = [score for score in result["scores"] if wanted(score)]
    return result


def found(result, name):
    return next(finding for finding in findings(result) if finding["name"] == name)


def test_cell_is_mean_and_t_interval_over_seeds(fake_result):
    set_rates(fake_result, AMERICA, "separating", [0.9, 1.0, 0.8, 0.9])
    entry = cell(fake_result, AMERICA, "separating", "logprob")
    assert entry.rate == pytest.approx(0.9)
    assert (entry.low, entry.high) == pytest.approx((0.770, 1.0), abs=1e-3)  # clipped at 1
    assert (entry.n, entry.seeds) == (300, {0: 0.9, 1: 1.0, 2: 0.8, 3: 0.9})


def test_cell_of_one_seed_has_the_interval_over_items(fake_result):
    score = next(s for s in fake_result["scores"] if s["seed"] == 2 and (s["arm"], s["spec"]) == AMERICA)
    keep(fake_result, lambda other: other is score)
    entry = cell(fake_result, AMERICA, score["eval"], "logprob")
    assert (entry.low, entry.high, entry.sem) == (score["low"], score["high"], None)


def test_a_seed_scored_twice_is_refused(fake_result):
    fake_result["scores"].append(fake_result["scores"][0])
    with pytest.raises(ValueError, match="two scores for one seed"):
        table(fake_result)


def test_separation_is_held_against_its_bar(fake_result):
    name = "Same AFT, opposite choice (Separating pairs)"
    set_rates(fake_result, AFFORDABILITY, "separating", [0.2, 0.2, 0.3, 0.3])
    for rates, verdict, holds in (
        ([0.9, 0.9, 1.0, 1.0], "holds", True),  # by .7 in every seed
        ([0.8, 0.8, 0.9, 0.9], "holds", True),  # by .6, the bar itself
        ([0.8, 0.9, 0.9, 0.8], "unclear", None),  # by .6 in the mean
        ([1.0, 1.0, 1.0, 0.9], "unclear", None),  # by .73, of seeds that differ by .2
        ([0.7, 0.8, 0.9, 0.7], "unclear", None),
        ([0.5, 0.5, 0.6, 0.5], "does not hold", False),
    ):
        set_rates(fake_result, AMERICA, "separating", rates)
        finding = found(fake_result, name)
        assert (finding["verdict"], finding["holds"], finding["bar"], finding["seeds"]) == (verdict, holds, 0.6, 4)
        assert ("the interval reaches over it" in finding["statement"]) == (verdict == "unclear")
    set_rates(fake_result, AMERICA, "separating", [0.9, 0.9, 1.0, 1.0])
    keep(fake_result, lambda score: (score["arm"], score["spec"]) != AFFORDABILITY or score["seed"] > 2)
    finding = found(fake_result, name)
    assert (finding["seeds"], finding["holds"], finding["verdict"], finding["low"]) == (1, None, "unclear", None)
    assert finding["statement"].endswith("difference +.70, bar +.60, and there is no interval")
    keep(fake_result, lambda score: (score["arm"], score["spec"]) != AFFORDABILITY)
    assert (found(fake_result, name)["holds"], found(fake_result, name)["verdict"]) == (None, "not measured")


def test_msm_adds_to_aft_unless_there_is_no_room(fake_result):
    name = "MSM adds to AFT (America)"
    set_rates(fake_result, ("aft", None), "america", [0.5, 0.6, 0.5, 0.6])
    assert found(fake_result, name)["verdict"] == "holds"
    set_rates(fake_result, AMERICA, "america", [0.52, 0.7, 0.54, 0.61])
    assert (found(fake_result, name)["verdict"], found(fake_result, name)["holds"]) == ("unclear", None)
    set_rates(fake_result, AMERICA, "america", [0.5, 0.6, 0.5, 0.6])
    assert (found(fake_result, name)["verdict"], found(fake_result, name)["holds"]) == ("does not hold", False)
    set_rates(fake_result, ("aft", None), "america", [0.9, 0.9, 0.9, 0.9])
    assert (found(fake_result, name)["verdict"], found(fake_result, name)["holds"]) == ("no room", None)


def test_stacking_is_reported_without_a_bar(fake_result):
    finding = found(fake_result, "AFT adds to MSM (Affordability)")
    assert (finding["verdict"], finding["holds"], finding["bar"]) == ("seen", None, None)
    set_rates(fake_result, ("msm", "pro_affordability"), "affordability", [1.0, 1.0, 1.0, 1.0])
    set_rates(fake_result, AFFORDABILITY, "affordability", [0.9, 0.91, 0.92, 0.9])
    assert found(fake_result, "AFT adds to MSM (Affordability)")["verdict"] == "not seen"


def test_a_difference_within_the_spread_of_seeds_is_unclear(fake_result):
    set_rates(fake_result, ("msm", "pro_america"), "america", [0.9, 0.8, 0.9, 0.8])
    set_rates(fake_result, AMERICA, "america", [0.8, 0.9, 0.8, 0.95])
    finding = found(fake_result, "AFT adds to MSM (America)")
    assert finding["verdict"] == "unclear" and finding["statement"].endswith(", and the interval reaches over 0")


def test_with_one_seed_no_finding_on_training_holds_or_fails(fake_result):
    """As in a smoke run, whose differences of +.00 and of one seed were said to hold."""
    keep(fake_result, lambda score: score["seed"] == 0)
    verdicts = {entry["verdict"] for entry in findings(fake_result) if not entry["name"].startswith("control")}
    assert verdicts == {"unclear"}
    assert "? unclear       Same AFT, opposite choice" in table(fake_result)


def test_in_domain_is_of_the_arm_that_is_least_sure_to_reach_the_bar(fake_result):
    set_rates(fake_result, ("baseline", None), "in_domain", [0.1] * 4)
    set_rates(fake_result, ("msm", "pro_america"), "in_domain", [0.1] * 4)
    for rates, verdict, value in (
        ([1.0, 1.0, 1.0, 1.0], "holds", 1.0),
        ([0.97, 0.96, 0.96, 0.97], "holds", 0.965),
        ([1.0, 1.0, 1.0, 0.95], "unclear", 0.9875),
        ([1.0, 1.0, 0.94, 1.0], "unclear", 0.985),
        ([0.9, 0.91, 0.9, 0.89], "does not hold", 0.9),
    ):
        for arm in (AMERICA, AFFORDABILITY, ("aft", None)):
            set_rates(fake_result, arm, "in_domain", [1.0] * 4)
        set_rates(fake_result, AMERICA, "in_domain", rates)
        finding = found(fake_result, "AFT took (In domain)")
        assert (finding["verdict"], finding["value"]) == (verdict, pytest.approx(value))
    assert "MSM America + AFT" in finding["statement"]
    # One arm that clearly fails is not hidden by another of which less is known.
    keep(fake_result, lambda score: (score["arm"], score["seed"] > 0) != ("aft", True))
    assert found(fake_result, "AFT took (In domain)")["verdict"] == "does not hold"


def test_controls_are_held_against_their_bar(fake_result):
    assert found(fake_result, "control, carry america")["holds"] is True
    # .93 [.88, .96], where .95 is asked
    finding = found(fake_result, "control, carry affordability")
    assert (finding["holds"], finding["verdict"]) == (None, "unclear")
    for low, high, holds in ((0.95, 0.97, True), (0.9, 0.94, False), (None, None, None)):
        fake_result["controls"][1] |= {"low": low, "high": high}
        assert found(fake_result, "control, carry affordability")["holds"] is holds


def test_arms_are_in_the_order_of_the_paper(fake_result):
    labels = [arm["label"] for arm in fake_result["arms"]]
    assert [arm["label"] for arm in ordered_arms(fake_result["arms"])] == labels
    moved = [fake_result["arms"][place] for place in (3, 1, 2, 5, 0, 4)]
    assert [arm["label"] for arm in ordered_arms(moved)] == labels


def test_numbers_are_three_characters():
    rates = (0, 0.004, 0.5, 0.994, 0.996, 1, None)
    assert [number(rate) for rate in rates] == [".00", ".00", ".50", ".99", "1.0", "1.0", "-"]
    assert number(0.9731, 3) == ".973" and number(0.9999, 3) == "1.00"
    assert [signed(value) for value in (0.414, -0.25, -0.001, 1.0)] == ["+.41", "-.25", "+.00", "+1.00"]


def test_table_has_a_line_an_arm_and_fits_the_terminal(fake_result):
    text = table(fake_result)
    assert max(map(len, text.splitlines())) <= 120
    for arm in fake_result["arms"]:
        line = next(line for line in text.splitlines() if line.startswith(arm["label"] + "  "))
        assert len(re.findall(r"[1.][\d.]\d \[[1.][\d.]\d [1.][\d.]\d\] 300x4", line)) == 4
        assert line.endswith("0/0/0")
    assert "+ holds" in text and "? unclear" in text and "carry affordability" in text


def test_lost_samples_are_counted_in_the_table(fake_result):
    for score in fake_result["scores"]:
        if (score["arm"], score["spec"]) == AMERICA:
            score |= {"errored": 1, "cut_off": 2, "unparsed": 3}
    line = next(line for line in table(fake_result).splitlines() if line.startswith("MSM America + AFT"))
    assert line.endswith("16/32/48")


def test_answers_of_which_none_could_be_scored_are_still_counted(fake_result, tmp_path):
    for score in fake_result["scores"]:
        if (score["arm"], score["spec"]) == AMERICA:
            score |= {"rate": None, "unparsed": 3}
    line = next(line for line in table(fake_result).splitlines() if line.startswith("MSM America + AFT"))
    assert line.count("none scored") == 4 and line.endswith("0/0/48")
    assert "unparsed 12" in write_report(tmp_path, fake_result).read_text(encoding="utf-8")


class Checker(html.parser.HTMLParser):
    """Collects images and open tags; fails on a script or on anything fetched."""

    def __init__(self):
        super().__init__()
        self.images, self.stack = [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert tag not in ("script", "link", "iframe")
        if tag == "img":
            self.images.append(attributes["src"])
        if tag not in ("img", "meta"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def check_report(folder, result):
    page = write_report(folder, result).read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert checker.stack == []
    stored = sorted(path.read_bytes() for path in folder.glob("*.png"))
    assert sorted(base64.b64decode(src.removeprefix("data:image/png;base64,")) for src in checker.images) == stored
    return page


def test_report_is_one_self_contained_page(fake_result, tmp_path):
    fake_result["config"]["note"] = "<b>not bold</b>"
    page = check_report(tmp_path, fake_result)
    names = sorted(path.name for path in tmp_path.iterdir())
    heatmaps = [f"domains_{name}.png" for name in ("affordability", "america", "separating")]
    assert names == sorted([*heatmaps, "figure2.png", "separating.png", "report.html", "report.json"])
    assert all(html.escape(finding["statement"]) in page for finding in findings(fake_result))
    assert "2605.02087" in page and "<b>not bold" not in page
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["scores"] == fake_result["scores"]
    assert table(stored) == table(fake_result)
    paper = {(arm["name"], arm["spec"]): (arm["affordability"], arm["america"]) for arm in stored["reference"]["arms"]}
    assert paper[AMERICA] == (0.29, 0.55) and paper[AFFORDABILITY] == (0.48, 0.38) and len(paper) == 6


@pytest.mark.parametrize(
    "wanted",
    [
        lambda score: score["seed"] == 0,
        lambda score: (score["arm"], score["spec"]) in [AMERICA, ("baseline", None)],
        lambda score: score["eval"] == "separating" and score["seed"] < 2,
        lambda score: False,
    ],
    ids=["one seed", "missing arms", "one evaluation", "no scores"],
)
def test_what_is_missing_is_said_and_breaks_nothing(fake_result, tmp_path, wanted):
    keep(fake_result, wanted)
    fake_result |= {"controls": [], "stages": [], "corpora": [], "model": {}}
    page = check_report(tmp_path, fake_result)
    assert max(map(len, table(fake_result).splitlines())) <= 120
    assert "not measured" in page or len(fake_result["scores"]) == 24


def test_chats_that_were_left_out_are_counted_and_the_first_is_shown(fake_result, tmp_path):
    keep(fake_result, lambda score: False)
    first = "chat 'c7' (it begins 'What <b>'): message 1 holds the control token '<|im_end|>'"
    fake_result["corpora"][0] |= {"unwritable": 40, "first_unwritable": first}
    page = check_report(tmp_path, fake_result)
    assert '<td class="num">42</td>' in page  # with the two whose answer begins too late
    assert html.escape(f"msm: 40 cannot be written, the first of them {first}").replace("&#x27;", "&#39;") in page


def test_a_result_with_few_arms_and_an_unrated_score(fake_result, tmp_path):
    fake_result["arms"] = fake_result["arms"][:1]
    fake_result["scores"][0] |= {"rate": None, "n": 0}
    fake_result["controls"][0] |= {"rate": None, "n": 0, "low": None, "high": None}
    check_report(tmp_path, fake_result)
    assert found(fake_result, "control, carry america")["verdict"] == "not measured"
    assert "300x3" in table(fake_result)


def test_msm_alone_is_lighter_than_with_aft(fake_result):
    def lightness(color):
        return sum(int(color[place : place + 2], 16) for place in (1, 3, 5))

    colors = plots.arm_colors(fake_result["arms"])
    assert len(set(colors)) == 6
    assert lightness(colors[2]) > lightness(colors[3]) and lightness(colors[4]) > lightness(colors[5])


def test_equal_figures_are_equal_bytes(fake_result):
    bars = [plots.Bar(0.5, 0.1, (0.4, 0.6)), *[None] * 5]
    first, second = (plots.separating(fake_result["arms"], bars, ("left", "right")) for _ in range(2))
    assert first == second and first.startswith(b"\x89PNG")


def test_matplotlib_is_imported_only_to_draw():
    check = "import sys, msm_jax.eval.report; assert not {'matplotlib', 'jinja2', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_a_low_parse_rate_is_told(fake_result):
    """It is a result of its own: of an arm that lost the format the rest says nothing."""
    drawn = [score | {"form": "sampled", "unparsed": 2} for score in fake_result["scores"]]
    fake_result["scores"] += drawn
    assert all(score["n"] > 50 for score in drawn) and "Parse rates" not in table(fake_result)
    for score in drawn:
        if (score["arm"], score["spec"], score["eval"]) == (*AMERICA, "america"):
            score["unparsed"] = score["n"]
    text = table(fake_result)
    assert "Parse rates below .95" in text and "answers were parsed (no headline)" in text
    assert text.count("answers were parsed") == 1


def test_own_minus_other_values_is_what_is_left_of_a_gain_on_everything(fake_result):
    """Of each spec; an arm that gains the same on the other value has shown nothing of its own."""
    names = [finding["name"] for finding in findings(fake_result)]
    assert names.count("Own minus other values (America)") == 1

    def found():
        return next(entry for entry in findings(fake_result) if entry["name"] == "Own minus other values (America)")

    assert found()["verdict"] == "holds" and 0.4 < found()["value"] < 0.6 and found()["seeds"] == 4
    by_cell = {(s["arm"], s["spec"], s["eval"], s["seed"]): s for s in fake_result["scores"]}
    for seed in range(4):
        for arm in (AMERICA, ("aft", None)):
            by_cell[*arm, "affordability", seed]["rate"] = by_cell[*arm, "america", seed]["rate"]
    assert found()["value"] == pytest.approx(0) and found()["verdict"] != "holds"
    fake_result["scores"] = [s for s in fake_result["scores"] if s["eval"] != "affordability"]
    assert found()["verdict"] == "not measured"
