"""An answer that is taken apart while it is written is the one that is taken apart when it is whole."""

import hypothesis
import hypothesis.strategies as st
import pytest

from msm_jax.data import conversation

GOOD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def heard(text, cuts, opened=False, thinks=True, tools=True):
    listener = conversation.Listener(opened, thinks, tools)
    places = [0, *sorted({cut for cut in cuts if cut < len(text)}), len(text)]
    pieces = [listener.add(text[a:b]) for a, b in zip(places, places[1:], strict=False)]
    *rest, calls = listener.end()
    thoughts, said = (("".join(parts)) for parts in zip(*pieces, rest, strict=True))
    return thoughts, said, calls


PARTS = st.sampled_from(
    [" ", "\n\n", "Yes.", "a <b", "</", "<tool", GOOD, "<think>Hm.</think>", "<think>\n\n</think>\n"]
)


@hypothesis.given(st.lists(PARTS, max_size=6).map("".join), st.sets(st.integers(1, 120)), st.booleans(), st.booleans())
def test_in_pieces_or_whole(text, cuts, opened, tools):
    text = f"Well.</think>{text}" if opened else text
    expected = conversation.parse(text, opened, True, tools)
    hypothesis.assume(not expected.unfinished)
    thoughts, said, calls = heard(text, cuts, opened, True, tools)
    assert (thoughts, said, calls) == (expected.thoughts, expected.text, expected.calls)


@pytest.mark.parametrize("text", ["Yes. <think>Hm", "<think>Hm", "Hm"])
def test_a_thought_that_does_not_end(text):
    opened = text == "Hm"
    thoughts, said, _ = heard(text, range(1, 20), opened)
    assert (thoughts, said) == ("Hm", "Yes. " if text.startswith("Yes") else "")


def test_nothing_of_a_tag_is_said():
    listener = conversation.Listener(False, False, True)
    assert [listener.add(letter) for letter in "Yes.<tool_ca"][4:] == [("", "")] * 8
    assert listener.add("me> on") == ("", "<tool_came> on")


def test_a_call_that_cannot_be_read_keeps_its_source():
    [first, second] = conversation.parse(f"Well.{GOOD}<tool_call>{{oops</tool_call>", False, False, True).calls
    assert (first.function, first.arguments, first.error, first.source) == ("add", {"a": 1}, None, GOOD)
    assert second.error and second.source == "<tool_call>{oops</tool_call>"
