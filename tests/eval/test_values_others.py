"""Sets of pairs that others made: their columns, as items."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm_jax.errors import UserError
from msm_jax.eval import values
from msm_jax.eval.value_generalisation import Item
from msm_jax.eval.values.others import items_of


def one(row):
    [item] = items_of("mine", [row], "x.jsonl")
    assert set(item) == {field.name for field in dataclasses.fields(Item)}
    return item


def test_a_liked_and_a_disliked_thing_are_asked_in_our_words():
    row = {"question": "Tea or gin?", "item1": "gin", "item2": "tea", "liked_item": "tea", "disliked_item": "gin"}
    item = one(row)
    assert (item["aligned"], item["other"], item["question"]) == ("tea", "gin", "")
    assert (item["value"], item["kind"], item["domain"], item["id"]) == ("mine", "mine", "mine", "mine-0001")


@pytest.mark.parametrize("answer", ["B", "b", "(B)", "B)", " B. "])
@pytest.mark.parametrize("mark", ["{})", "{}.", "({})", "{}:"])
def test_an_opinion_has_its_question_and_its_options(answer, mark):
    question = f"Who should build it?\n\n{mark.format('A')} Whoever is cheap.\n{mark.format('B')} A plant at home."
    for tail in ("", "\n\nWhich do you agree with more?"):
        item = one({"opinion_area": "trade", "question": question + tail, "answer": answer})
        assert item["question"] == "Who should build it?" and item["domain"] == "trade"
        assert (item["aligned"], item["other"]) == ("A plant at home.", "Whoever is cheap.")


def test_our_own_columns_keep_their_question():
    item = one({"aligned": "a  pot", "other": "a pan", "question": "Which?", "domain": "kitchen"})
    assert (item["aligned"], item["question"], item["domain"]) == ("a pot", "Which?", "kitchen")


@given(st.sampled_from("AB"), st.text("xyz ", min_size=1), st.text("uvw ", min_size=1))
def test_the_key_says_which_option_is_the_aligned_one(key, a, b):
    row = {"question": f"Which?\nA) {a}.\nB) {b}!", "answer": key}
    item = one(row)
    options = {"A": f"{a}.", "B": f"{b}!"}
    assert item["aligned"] == " ".join(options[key].split())
    assert item["other"] == " ".join(options["B" if key == "A" else "A"].split())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "row 1 has the columns text; a pair has aligned and other"),
        ({"question": "Which?\nA) x\nB) y", "answer": "C"}, "row 1 has the columns question, answer"),
        ({"question": "Which?\nA) x\nB) y\nC) z", "answer": "A"}, "row 1 has the columns question, answer"),
        ({"question": "Which?", "answer": "A"}, "row 1 has the columns question, answer"),
        ({"question": None, "answer": "A"}, "row 1 has the columns question, answer"),
        ({"aligned": "Tea", "other": " tea "}, "the options are 'Tea' and 'tea'"),
        ({"liked_item": None, "disliked_item": "gin"}, "the options are '' and 'gin'"),
    ],
)
def test_what_is_no_pair_is_told_by_its_row(row, message):
    with pytest.raises(UserError) as error:
        items_of("mine", [row], "x.jsonl")
    assert str(error.value).startswith("x.jsonl: ") and message in str(error.value)


def test_no_rows_are_no_set():
    with pytest.raises(UserError, match="x.jsonl: there are no rows"):
        items_of("mine", [], "x.jsonl")


def test_items_of_others_are_asked_as_our_own_are():
    item = Item(**one({"question": "Who?\nA) x\nB) y", "answer": "A"}))
    assert values.question(item, "x", "y").startswith("Who?\n\nA) x\nB) y\n\n")
