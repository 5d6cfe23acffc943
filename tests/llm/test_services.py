"""What services say of a call, in the words that they have been seen to use."""

import datetime
import email.utils
import re
import time

import pytest

from msm_jax.errors import UserError
from msm_jax.llm.request import Finish, Rejected, Reply, Request, Status, Unavailable, Usage, classify
from msm_jax.llm.services import checked, failure, finish_of, line, of_a_day, seconds, text_of

PROSE = Request("document", "Write.", tags=("document",))
WHOLE = "<document>A text.</document>"


@pytest.mark.parametrize(
    ("word", "text", "status"),
    [
        *((word, WHOLE, Status.OK) for word in (None, "", "stop", "STOP", "eos_token", "end_turn", "COMPLETE", "done")),
        # Of a word that nobody knows, the form of the reply tells whether it is whole.
        *((word, WHOLE, Status.OK) for word in ("OTHER", "tool_calls", "a word of 2031", 7, ["stop"])),
        *((word, WHOLE[:-5], Status.SCHEMA) for word in ("OTHER", "tool_calls", "a word of 2031", 7, ["stop"])),
        *((word, WHOLE, Status.TRUNCATED) for word in ("length", "MAX_TOKENS", "model_length", "max_output_tokens")),
        *((word, WHOLE, Status.BLOCKED) for word in ("content_filter", "SAFETY", "refusal", "PROHIBITED_CONTENT")),
        ("RECITATION", WHOLE, Status.RECITATION),
        *((word, WHOLE, Status.ERROR) for word in ("error", "abort", "insufficient_system_resource")),
    ],
)
def test_every_word_for_the_end_of_a_reply_is_classified(word, text, status):
    finish, detail = finish_of(word)
    assert classify(PROSE, Reply(text, finish, Usage(), "m", detail)).status is status


def test_what_an_unusual_word_was_is_kept():
    assert finish_of("OTHER") == (Finish.STOP, "ended with OTHER")
    assert finish_of("eos_token") == (Finish.STOP, "")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "A "}, {"type": "text", "text": "text."}], "A text."),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "Well."}]}, {"text": "A text."}], "A text."),
        ([{"type": "reasoning", "text": "Well."}, "A text."], "A text."),
        ({"type": "output_text", "text": "A text."}, "A text."),
        *((nothing, "") for nothing in (None, 7, [], {}, [None], {"type": "image_url", "image_url": "http://x"})),
    ],
)
def test_the_text_of_a_message_in_parts(content, text):
    assert text_of(content) == text


def test_delays():
    then = datetime.datetime.fromtimestamp(time.time() + 90, datetime.UTC)
    assert seconds(email.utils.format_datetime(then, usegmt=True)) == pytest.approx(90, abs=2)
    assert [seconds(value) for value in ("12", "12.5s", 3, "3600s")] == [12, 12.5, 3, 3600]
    # Nothing that can be kept: 0 would ask without end, and a moment or years are no delay.
    for none in (None, "", "0", "-5", "nan", "inf", "1e400", "soon", "²", "1764412800", {"a": 3}):
        assert seconds(none) is None
    assert seconds("Wed, 21 Oct 2015 07:28:00 GMT") is None


GROQ = "Rate limit reached for model x on tokens per day (TPD): Limit 100000, Used 99336. Please try again in 11m2s."


@pytest.mark.parametrize(
    ("status", "said", "kind", "about"),
    [
        *((status, "no", Unavailable, {"busy": True, "perhaps_paid": False}) for status in (429, 503, 529)),
        (429, "60 requests per minute, with a plan 1000 per day", Unavailable, {"busy": True}),
        (500, "an error", Unavailable, {"busy": False, "perhaps_paid": False}),
        *((status, "no", Unavailable, {"busy": False, "perhaps_paid": True}) for status in (None, 408, 502, 524)),
        (429, GROQ, UserError, {"match": "the quota of the day is used up .*11m2s.*it resets"}),
        (None, "Rate limit exceeded: free-models-per-day", UserError, {"match": "run the same command again then"}),
        (429, '{"code": "insufficient_quota"}', UserError, {"match": "no credit left"}),
        (402, "Insufficient credits", UserError, {"match": "no credit left"}),
        (401, "who are you", UserError, {"match": "refuses the key .*look at THE_KEY"}),
        (400, "API key expired", UserError, {"match": "refuses the key"}),
        (404, "no such model", UserError, {"match": "look at config.generation.model"}),
        (400, "something is wrong", Rejected, {"alone": False, "match": "refuses a request: 400: something"}),
        (400, "The prompt triggered our content management policy", Rejected, {"alone": True}),
        (403, "Your input was flagged", Rejected, {"alone": True}),
    ],
)
def test_what_an_error_means(status, said, kind, about):
    error = failure("It", status, said, None, key="THE_KEY", model="config.generation.model", day=of_a_day(said))
    assert type(error) is kind
    assert re.search(about.get("match", said), str(error))
    assert all(getattr(error, name) == value for name, value in about.items() if name != "match")


@pytest.mark.parametrize(("known", "told"), [({}, "in 11 minutes"), ({"resets": "at noon"}, "at noon")])
def test_when_a_quota_is_over_is_told(known, told):
    assert f"it resets {told}:" in str(failure("It", 429, "x", 662.0, key="", model="", day=True, **known))


@pytest.mark.parametrize("odd", ["\u200b", "\ufeff", "\u00a0", " ", "\n", "ключ", "’"])
def test_a_key_or_an_address_with_an_odd_character_is_told_without_it(odd):
    with pytest.raises(UserError, match=rf"^THE_KEY holds U\+{ord(odd[0]):04X} \(.+\), which cannot be in it") as error:
        checked(f"secret{odd}key", "THE_KEY")
    assert "secret" not in str(error.value)
    assert checked("AIza-sy_09", "THE_KEY") == "AIza-sy_09"


def test_a_page_is_told_by_its_words_in_a_line_without_the_key():
    page = "<!DOCTYPE html><html><head><style>p {\n}</style></head>\n<body><h1>502</h1> my-key is bad" + " x" * 999
    assert line(page, "my-key").startswith("502 [key] is bad x x")
    assert len(line(page)) == 300
