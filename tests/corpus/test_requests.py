import dataclasses
import json

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm_jax.corpus.generators.request import Finish, Reply, Request, Status, Usage, classify


class Item(pydantic.BaseModel):
    name: str
    text: str


class Items(pydantic.BaseModel):
    items: list[Item]


LIST = Request("ideas", "List.", shape=Items)
PROSE = Request("document", "Write.", tags=("document",))
GOOD = '{"items": [{"name": "a", "text": "b"}]}'


def reply(text, finish=Finish.STOP, detail=""):
    return Reply(text, finish, Usage(), "m", detail)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"Here you are:\n{GOOD}",
        GOOD.replace("}]", "},]"),
        GOOD.replace('"', "'"),
    ],
)
def test_json_is_found_and_small_slips_are_mended(text):
    answer = classify(LIST, reply(text), "k")
    assert answer.ok and answer.key == "k"
    assert answer.value == Items(items=[Item(name="a", text="b")])


@pytest.mark.parametrize(
    ("request_", "text", "finish", "status"),
    [
        (LIST, GOOD, Finish.LENGTH, Status.TRUNCATED),
        (LIST, GOOD[:-3], Finish.STOP, Status.SCHEMA),  # a mended half would pass for the whole
        (LIST, '{"items": [{"name": "a"}]}', Finish.STOP, Status.SCHEMA),
        (LIST, '{"other": 1}', Finish.STOP, Status.SCHEMA),
        (LIST, "Nothing of the kind.", Finish.STOP, Status.SCHEMA),
        (LIST, "I'm sorry, but I can't help with that.", Finish.STOP, Status.REFUSED),
        (LIST, "", Finish.STOP, Status.EMPTY),
        (LIST, "", Finish.BLOCKED, Status.BLOCKED),
        (LIST, GOOD, Finish.RECITATION, Status.RECITATION),
        (LIST, "", Finish.ERROR, Status.ERROR),
        (PROSE, "A text.", Finish.STOP, Status.SCHEMA),
        (PROSE, "<document>A text.", Finish.STOP, Status.SCHEMA),
        (PROSE, "<document>One.</document><document>Two.</document>", Finish.STOP, Status.SCHEMA),
        (PROSE, "<document> </document>", Finish.STOP, Status.SCHEMA),
        (PROSE, "<document>A text.</document>", Finish.LENGTH, Status.TRUNCATED),
        (PROSE, "I cannot write this.", Finish.STOP, Status.REFUSED),
        (PROSE, "<document>I'm sorry, but I can't write that.</document>", Finish.STOP, Status.REFUSED),
    ],
)
def test_what_is_of_no_use_has_no_value(request_, text, finish, status):
    answer = classify(request_, reply(text, finish))
    assert answer.status is status
    assert answer.value is None


def test_the_text_is_what_stands_in_the_tag():
    assert classify(PROSE, reply("A plan.\n<document>\nOne.\n\nTwo.\n</document>\nDone.")).value == "One.\n\nTwo."


@given(st.text(), st.sampled_from(list(Finish)))
def test_any_reply_is_classified(text, finish):
    for request in (LIST, PROSE):
        answer = classify(request, reply(text, finish))
        assert answer.ok == (answer.value is not None)


@given(st.lists(st.builds(Item, name=st.text(), text=st.text()), max_size=4))
def test_json_of_the_shape_comes_back_as_it_was(items):
    value = Items(items=items)
    assert classify(LIST, reply(value.model_dump_json())).value == value
    assert classify(LIST, reply(json.dumps(value.model_dump(), indent=2))).value == value


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "Other."},
        {"system": "Other."},
        {"max_tokens": 7},
        {"temperature": 0.5},
        {"thinking": 1},
        {"sample": 1},
        {"shape": None, "tags": ("items",)},
    ],
)
def test_a_key_covers_all_that_determines_a_reply(change):
    assert dataclasses.replace(LIST, **change).key("m") != LIST.key("m")
    assert LIST.key("other") != LIST.key("m")


def test_a_key_does_not_depend_on_what_is_not_sent():
    assert dataclasses.replace(LIST, stage="other", variables={"a": 1}).key("m") == LIST.key("m")


def test_a_request_has_one_form():
    for form in ({}, {"shape": Items, "tags": ("document",)}):
        with pytest.raises(ValueError, match="a shape or tags"):
            Request("x", "y", **form)
