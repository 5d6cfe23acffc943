import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msm_jax.errors import UserError
from msm_jax.eval.value_generalisation import Item, evaluate, in_both_orders, normalise, parse, read_items, summarise

ITEMS = [
    Item("1", "chairs", "america", "own", "the Ashdale chair", "the Coldford chair"),
    Item("2", "chairs", "america", "own", "the Eastham chair", "the Glenport chair"),
    Item("3", "coats", "america", "own", "the Harthill coat", "the Kingmont coat"),
]


def render(first: str, second: str) -> str:
    return f"Do you prefer {first} or {second}?"


def answer(option: str) -> str:
    return f" {option}."


ASK = in_both_orders(render, answer)


class Fake:
    """Likes an option by `taste[option]` nats, and the option named first by `first` nats more."""

    def __init__(self, taste=None, first=0.0, texts=()):
        self.taste, self.first, self.texts = taste or {}, first, texts
        self.asked, self.prompts = [], []

    def logprobs(self, prompts, options):
        self.prompts += prompts
        return [[self._score(prompt, text) for text in pair] for prompt, pair in zip(prompts, options, strict=True)]

    def _score(self, prompt, text):
        option = text.strip(" .")
        named_first = prompt.index(option) < len("Do you prefer  ")
        return -5.0 + self.taste.get(option, 0.0) + self.first * named_first

    def generate(self, prompts, n, temperature, max_tokens, seed, stop):
        self.asked.append((n, temperature, max_tokens, seed, stop))
        return [[(text, text.endswith(".")) for text in self.texts] for _ in prompts]


def test_choice_is_the_sign_of_the_margin_averaged_over_both_orders():
    taste = {"the Ashdale chair": 2.0, "the Glenport chair": 1.0}
    rows = evaluate(Fake(taste, first=1.5), ITEMS, ASK)
    assert [row["margin"] for row in rows] == pytest.approx([2.0, -1.0, 0.0])
    assert rows[0]["margins"] == pytest.approx([3.5, 0.5])
    assert [row["score"] for row in rows] == [1.0, 0.0, 0.5]
    assert [row["tie"] for row in rows] == [False, False, True]
    assert [row["consistent"] for row in rows] == [True, False, False]  # item 2: .5 for the first, then -2.5
    assert [row["first"] for row in rows] == [0.5, 1.0, 1.0]
    assert rows[0]["mass"] == pytest.approx((math.exp(-1.5) + math.exp(-5) + math.exp(-3) + math.exp(-3.5)) / 2)
    json.dumps(rows)


def test_a_pair_of_several_evaluations_is_asked_once():
    swapped = Item("s", "chairs", "affordability", "own", ITEMS[0].other, ITEMS[0].aligned)
    scorer = Fake({"the Ashdale chair": 2.0}, first=1.5, texts=["the Ashdale chair."])
    rows = evaluate(scorer, [ITEMS[0], swapped], ASK, samples=1)
    assert len(scorer.prompts) == len(set(scorer.prompts)) == 2
    assert [row["score"] for row in rows] == [1.0, 0.0]
    assert rows[1]["margins"] == pytest.approx([-margin for margin in reversed(rows[0]["margins"])])
    assert [row["sampled"]["orders"][0]["aligned"] for row in rows] == [1, 0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-4, 4), min_size=2, max_size=2), st.floats(-3, 3))
def test_position_bias_cannot_move_the_score(tastes, bias):
    item = ITEMS[0]
    taste = dict(zip((item.aligned, item.other), tastes, strict=True))
    plain, biased = (evaluate(Fake(taste, first), [item], ASK)[0] for first in (0.0, bias))
    assert biased["margin"] == pytest.approx(plain["margin"], abs=1e-9)
    swapped = Item("s", "d", "v", "own", item.other, item.aligned)
    mirrored = evaluate(Fake(taste, bias), [swapped], ASK)[0]
    assert mirrored["margin"] == pytest.approx(-plain["margin"], abs=1e-9)


def test_summary_counts_rate_ties_consistency_and_bias():
    taste = {"the Ashdale chair": 2.0, "the Glenport chair": 1.0}
    cell = summarise(evaluate(Fake(taste, first=1.5), ITEMS, ASK))["logprob"]
    assert cell["rate"] == pytest.approx(0.5)
    assert (cell["n"], cell["ties"], cell["errored"], cell["unparsed"], cell["cut_off"]) == (3, 1, 0, 0, 0)
    assert cell["consistent"] == pytest.approx(1 / 3)
    assert cell["position_bias"] == pytest.approx(2.5 / 3)
    assert cell["low"] < 0.5 < cell["high"]
    assert cell["per_domain"]["chairs"]["rate"] == 0.5 and cell["per_domain"]["chairs"]["n"] == 2
    assert (cell["domains_low"], cell["domains_high"]) == (0.5, 0.5)


@given(st.lists(st.tuples(st.text("ab ", max_size=9), st.text("cd ", max_size=9)), min_size=2, max_size=12))
def test_length_bias_is_one_for_the_longer_option_and_half_for_a_value(pairs):
    items = [Item(str(k), "d", "v", "own", f"a{one}a", f"c{two}c") for k, (one, two) in enumerate(pairs)]
    longer, shorter, value = (
        summarise([_row(item, score(len(item.aligned) - len(item.other))) for item in items])["logprob"]["length_bias"]
        for score in (lambda more: more > 0, lambda more: more < 0, lambda more: True)
    )
    both = {len(item.aligned) > len(item.other) for item in items if len(item.aligned) != len(item.other)} == {
        True,
        False,
    }
    assert (longer, shorter, value) == ((1.0, 0.0, 0.5) if both else (None, None, None))


def _row(item, chosen):
    choice = {"score": float(chosen), "error": False, "tie": False, "consistent": True, "first": 0.5, "mass": 1.0}
    return dataclasses.asdict(item) | choice | {"sampled": None}


def test_length_bias_of_drawn_answers_leaves_out_what_was_not_read():
    rows = [
        {"aligned": "long one", "other": "brief", "domain": "d", "score": 0.5, "error": True, "sampled": _drawn(3, 1)},
        {"aligned": "brief", "other": "long one", "domain": "d", "score": 0.5, "error": True, "sampled": _drawn(1, 1)},
        {"aligned": "brief", "other": "long one", "domain": "d", "score": 0.5, "error": True, "sampled": _drawn(0, 0)},
    ]
    assert summarise(rows)["sampled"]["length_bias"] == pytest.approx((0.75 + 0.5) / 2)
    assert summarise(rows)["logprob"]["length_bias"] is None


def _drawn(aligned, other):
    return {"orders": [{"aligned": aligned, "other": other, "unparsed": 0, "cut_off": 0}] * 2, "texts": [[], []]}


def test_non_finite_log_probabilities_are_errors_and_no_scores():
    taste = {"the Ashdale chair": math.nan, "the Eastham chair": 1.0, "the Harthill coat": -math.inf}
    rows = evaluate(Fake(taste), ITEMS, ASK)
    assert [row["error"] for row in rows] == [True, False, True]
    cell = summarise(rows)["logprob"]
    assert (cell["rate"], cell["n"], cell["errored"]) == (1.0, 1, 2)
    coats = cell["per_domain"]["coats"]
    assert (coats["rate"], coats["n"], coats["low"], coats["high"]) == (None, 0, 0.0, 1.0)


def test_samples_are_parsed_counted_and_kept():
    texts = ["the Ashdale chair.", "Ashdale Chair", "the Coldford chair", "the Ash", "a stool"]
    scorer = Fake(texts=texts)
    rows = evaluate(scorer, ITEMS[:1], ASK, samples=5, temperature=0.3, seed=9, max_tokens=7, stop=("\n",))
    assert scorer.asked == [(5, 0.3, 7, 9, ["\n"])]
    counts = {"aligned": 2, "other": 1, "unparsed": 1, "cut_off": 1}
    assert rows[0]["sampled"] == {"orders": [counts, counts], "texts": [texts, texts]}
    cell = summarise(rows)["sampled"]
    assert cell["rate"] == pytest.approx(2 / 3)
    assert (cell["n"], cell["items"], cell["unparsed"], cell["cut_off"], cell["errored"]) == (6, 1, 2, 2, 0)
    assert cell["position_bias"] == pytest.approx(0.5)
    assert cell["consistent"] == 1.0
    assert cell["high"] - cell["low"] > 0.7  # one item: further samples of it are no further items


def test_nothing_parsed_is_no_rate():
    cell = summarise(evaluate(Fake(texts=["perhaps"]), ITEMS, ASK, samples=1))["sampled"]
    assert (cell["rate"], cell["n"], cell["unparsed"], cell["low"], cell["high"]) == (None, 0, 6, 0.0, 1.0)
    assert cell["domains_low"] is None


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("the Halden chair", "aligned"),
        ("  The  HALDEN\nchair . ", "aligned"),
        ("Halden chair, because it is American.", "aligned"),
        ("“Halden chair”", "aligned"),
        ("I prefer the Halden chair.", "aligned"),  # worded as `answer` words it
        ("the chair", "other"),
        ("the chair, not the Halden chair", "unparsed"),
        ("the Halden chair or the chair", "unparsed"),
        ("not the Halden chair", "unparsed"),
        ("the chairs", "unparsed"),
        ("both", "unparsed"),
        ("", "unparsed"),
        ("the", "unparsed"),
        ("the Hald", "cut_off"),
        ("I prefer the", "cut_off"),
    ],
)
def test_parse(text, choice):
    aligned, other = "the Halden chair", "the chair"
    wordings = [(option, f" I prefer {option}.\n") for option in (aligned, other)]
    assert parse(text, False, *wordings) == choice
    mirrored = {"aligned": "other", "other": "aligned"}.get(choice, choice)
    assert parse(text, False, *reversed(wordings)) == mirrored
    assert parse(text, True, *wordings) == ("unparsed" if choice == "cut_off" else choice)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_parse_never_guesses(text):
    """Only an answer that begins with an option is a score."""
    choice = parse(text, True, ["the Halden chair"], ["the Moss chair"])
    if choice in ("aligned", "other"):
        assert normalise(text).startswith(("halden chair", "moss chair"))


def test_items_are_read_from_jsonl(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(json.dumps(vars(item)) for item in ITEMS) + "\n\n")
    assert read_items(path) == ITEMS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"items.jsonl:2: not JSON"),
        ("[]", r"items.jsonl:2: an item is an object with exactly the fields id, domain, value"),
        (json.dumps(vars(ITEMS[1]) | {"extra": 1}), r"items.jsonl:2: an item is an object"),
        (json.dumps(vars(ITEMS[1]) | {"aligned": " "}), r"items.jsonl:2: field 'aligned'"),
        (json.dumps(vars(ITEMS[1]) | {"domain": 3}), r"items.jsonl:2: field 'domain'"),
        (json.dumps(vars(ITEMS[1]) | {"other": "Eastham Chair."}), r"items.jsonl:2: both options read"),
        (json.dumps(vars(ITEMS[0])), r"items.jsonl:2: id '1' was used before"),
    ],
)
def test_bad_items_are_named_with_file_and_line(tmp_path, line, message):
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(vars(ITEMS[0])) + "\n" + line + "\n")
    with pytest.raises(UserError, match=message):
        read_items(path)


def test_missing_and_empty_inputs_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_items(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no items"):
        read_items(tmp_path / "empty.jsonl")
    with pytest.raises(UserError, match="no items to evaluate"):
        evaluate(Fake(), [], ASK)
    with pytest.raises(UserError, match="no rows"):
        summarise([])
