import dataclasses
import json
import re
import time

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msm_jax.llm.prices import Price
from msm_jax.llm.request import Finish, Reply, Request, Status, Usage, classify, without_thoughts


class Item(pydantic.BaseModel):
    name: str
    text: str


class Items(pydantic.BaseModel):
    items: list[Item]


class Questions(pydantic.BaseModel):
    questions: list[str]


ASKED = Request("questions", "Ask.", shape=Questions)
LIST = Request("ideas", "List.", shape=Items)
PROSE = Request("document", "Write.", tags=("document",))
GOOD = '{"items": [{"name": "a", "text": "b"}]}'


def reply(text, finish=Finish.STOP, detail=""):
    return Reply(text, finish, Usage(), "m", detail)


@pytest.mark.parametrize("text", [GOOD, f"```json\n{GOOD}\n```", f"Here you are:\n{GOOD}", GOOD.replace("}]", "},]")])
def test_json_is_found_and_small_slips_are_mended(text):
    answer = classify(LIST, reply(text), "k")
    assert answer.ok and answer.key == "k"
    assert answer.value == Items(items=[Item(name="a", text="b")])


# Where a text ends is a guess in all of these.
GUESSES = [
    '"Is a 27" screen enough?", "Should I keep it?"',
    '"Who said "no", and why?", "When?"',
    "'Is it Bob's?', 'Why?'",
]
GUESSES += [
    '"Is "yes", "no" or "maybe" best?"',
    "'It is the boys' and the girls' turn'",
    '"a" "b"',
    '"a", b',
    '"a", "b',
]
GUESSES += ['"a"], "more": ["b', '""]}"', r"""'', "\''""", '"a"]} {"questions": ["b"']


@pytest.mark.parametrize(
    ("inside", "questions"),
    [
        (r'"a", "b",', ["a", "b"]),
        (r"'a', 'b'", ["a", "b"]),
        (r"""'a "b" c'""", ['a "b" c']),
        (r"'a\'s', 'b'", ["a's", "b"]),
        (r'"a\'s", "b"', ["a's", "b"]),
        ('"a\nb",', ["a\nb"]),
        (r'"a\\", "b",', ["a\\", "b"]),
        (r'"a, ]", "b",', ["a, ]", "b"]),
        (r'"\ud83d\ude00 a \ud83d"', ["\U0001f600 a \ufffd"]),
        *((inside, None) for inside in GUESSES),
    ],
)
def test_mending_changes_no_meaning(inside, questions):
    quote = "'" if inside.startswith("'") else '"'
    answer = classify(ASKED, reply(f"Here:\n{{{quote}questions{quote}: [{inside}]}}\nThat is all, isn't it?"))
    assert answer.status is (Status.SCHEMA if questions is None else Status.OK)
    assert questions is None or answer.value.questions == questions


@settings(max_examples=60)
@given(st.lists(st.text("ab'\",[]:{} \\\n", max_size=12), min_size=1, max_size=4), st.sampled_from("'\""), st.data())
def test_a_quote_that_lacks_its_escape_makes_no_other_texts(texts, quote, data):
    """The reply as it should be has these texts; without one of its escapes, the same or none."""
    whole = json.dumps({"questions": texts})
    if quote == "'":
        single = (json.dumps(text)[1:-1].replace('\\"', '"').replace("'", "\\'") for text in texts)
        whole = "{'questions': [" + ", ".join(f"'{text}'" for text in single) + "]}"
    assert classify(ASKED, reply(whole)).value == Questions(questions=texts)
    escapes = [match.start() for match in re.finditer(r"\\.", whole) if match[0] == "\\" + quote]
    if escapes:
        place = data.draw(st.sampled_from(escapes))
        answer = classify(ASKED, reply(whole[:place] + whole[place + 1 :]))
        assert not answer.ok or answer.value.questions == texts


@pytest.mark.parametrize("text", ["}" * 60_000 + "a", '{"a": "' + '\\"' * 60_000, "{" + ", " * 60_000, "{'" * 60_000])
def test_a_reply_of_rubbish_costs_no_time(text):
    began = time.monotonic()
    assert classify(ASKED, reply(text)).status is Status.SCHEMA
    assert time.monotonic() - began < 2


def test_half_of_a_surrogate_pair_is_in_no_answer():
    text = "<document>A \ud83d text, \U0001f600.</document>"
    assert classify(PROSE, reply(text)).value == "A \ufffd text, \U0001f600."
    whole = Reply("", Finish.ERROR, Usage(), "m\udc80", "x\ud83d")
    assert (whole.model + whole.detail).encode()


@pytest.mark.parametrize(
    ("counted", "usage"),
    [
        ((10, 4, 7), (10, 4, 7)),
        (("10", "4", "7.0"), (10, 4, 7)),
        ((None, None, None), (0, 0, 0)),
        ((10, None, 7), (10, 0, 7)),
        # Nobody counted what is no number.
        *((odd, (0, 0, 0)) for odd in ((10, 4, -7), ("ten", 4, 7), (10, float("inf"), 7), (10, [1], 7), (10, 4, 1e30))),
        # Some count those in the cache beside the others, and thoughts in the total alone.
        ((10, 5000, 1), (5010, 5000, 1)),
        ((10, 0, 7, 900), (10, 0, 890)),
        ((10, 0, 7, "17"), (10, 0, 7)),
    ],
)
def test_tokens_are_what_can_be_counted(counted, usage):
    found = Usage(*counted)
    assert (found.prompt, found.cached, found.output) == usage
    assert Price(3.0, 0.3, 3.0).cost(found) >= 0


def test_what_nobody_counted_costs_the_most_that_it_can():
    price = Price(1.0, 0.1, 2.0)
    for counted, text, cost in (
        ((), "", 5.0), ((10, 0, 0), "A text.", 5.0), ((None, 0, 7), "A text.", 5.0),
        ((10, 0, 0), "", 1e-5), ((10, 0, 7), "A text.", 2.4e-5),
    ):  # fmt: skip
        assert price.charged(Reply(text, Finish.STOP, Usage(*counted)), 5.0) == pytest.approx(cost)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        *(("<think>Well.</think>A text.", "A text."), ("A text.", "A text.")),
        *(("<think>A draft: <document>No.</document>", ""), ("Well.</think> <think> Again", "")),
    ],
)
def test_thoughts_are_no_answer(text, answer):
    assert without_thoughts(text) == answer


@pytest.mark.parametrize(
    ("request_", "text", "finish", "status"),
    [
        *((LIST, GOOD, *pair) for pair in ((Finish.LENGTH, Status.TRUNCATED), (Finish.RECITATION, Status.RECITATION))),
        *((LIST, "", *pair) for pair in ((Finish.BLOCKED, Status.BLOCKED), (Finish.ERROR, Status.ERROR))),
        (LIST, "", Finish.STOP, Status.EMPTY),
        (LIST, GOOD[:-3], Finish.STOP, Status.SCHEMA),  # a mended half would pass for the whole
        *(
            (LIST, text, Finish.STOP, Status.SCHEMA)
            for text in ('{"items": [{"name": "a"}]}', '{"other": 1}', "Nothing.")
        ),
        (PROSE, "<document>A text.</document>", Finish.LENGTH, Status.TRUNCATED),
        *(
            (PROSE, text, Finish.STOP, Status.SCHEMA)
            for text in ("A text.", "<document>A text.", "<document> </document>")
        ),
        (PROSE, "</document>A text.<document>", Finish.STOP, Status.SCHEMA),
        (PROSE, "<document>One.</document><document>Two.</document>", Finish.STOP, Status.SCHEMA),
        (LIST, "I'm sorry, but I can't help with that.", Finish.STOP, Status.REFUSED),
        (PROSE, "I cannot write this.", Finish.STOP, Status.REFUSED),
        (PROSE, "<document>I'm sorry, but I can't write that.</document>", Finish.STOP, Status.REFUSED),
    ],
)
def test_what_is_of_no_use_has_no_value(request_, text, finish, status):
    answer = classify(request_, reply(text, finish))
    assert answer.status is status
    assert answer.value is None


def test_the_text_is_what_stands_in_the_tag():
    pair = dataclasses.replace(PROSE, tags=("reasoning", "answer"))
    one, two = "<reasoning>One.</reasoning>", "<answer>Two.</answer>"
    assert classify(pair, reply(f"{one} And {two}")).value == ("One.", "Two.")
    assert not classify(pair, reply(two + one)).ok
    assert classify(PROSE, reply("A plan.\n<document>\nOne.\n\nTwo.\n</document>\nDone.")).value == "One.\n\nTwo."


@settings(max_examples=30)
@given(st.text(), st.sampled_from(list(Finish)))
def test_any_reply_is_classified(text, finish):
    for request in (LIST, PROSE):
        answer = classify(request, reply(text, finish))
        assert answer.ok == (answer.value is not None)


@settings(max_examples=30)
@given(st.lists(st.builds(Item, name=st.text(), text=st.text()), max_size=4))
def test_json_of_the_shape_comes_back_as_it_was(items):
    value = Items(items=items)
    assert classify(LIST, reply(value.model_dump_json())).value == value
    assert classify(LIST, reply(json.dumps(value.model_dump(), indent=2))).value == value


def test_a_key_covers_all_that_determines_a_reply_and_never_changes():
    changes = ({"prompt": "Other."}, {"system": "Other."}, {"max_tokens": 7}, {"temperature": 0.5}, {"thinking": 1})
    changes += ({"sample": 1}, {"shape": None, "tags": ("items",)})
    keys = {dataclasses.replace(LIST, **change).key("m") for change in ({}, *changes)} | {LIST.key("other")}
    assert len(keys) == len(changes) + 2
    assert dataclasses.replace(LIST, stage="other", attempt=2, variables={"a": 1}).key("m") in keys
    # Under another, replies that were paid for would not be found again.
    assert PROSE.key("m") == "341206db1d2058be396aa94f029da39a"


def test_a_request_has_one_form():
    for form in ({}, {"shape": Items, "tags": ("document",)}):
        with pytest.raises(ValueError, match="a shape, or tags, or"):
            Request("x", "y", **form)
