"""The generator "local" against a small server of chat completions on 127.0.0.1."""

import asyncio
import json
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msm_jax.errors import UserError
from msm_jax.llm.caller import Caller, Limits
from msm_jax.llm.openai import OpenAI
from msm_jax.llm.prices import FREE, Price
from msm_jax.llm.request import Finish, Status, Unavailable
from msm_jax.llm.store import CallStore
from tests.corpus.gemini import Items, lists, texts
from tests.small_server import Handler, SmallServer


class Server(SmallServer):
    """`answers`: (status, body) one after the other; the last for all that follow."""


class _Handler(Handler):
    def do_POST(self):
        server = self.server
        server.bodies.append(json.loads(self.body()))
        server.headers.append(dict(self.headers) | {"path": self.path})
        self.send(*(server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]))


@pytest.fixture(scope="module")
def running():
    server = Server(_Handler)
    yield server
    server.stop()


@pytest.fixture
def server(running):
    running.answers, running.bodies, running.headers = [GOOD], [], []
    return running


def completion(text, finish="stop", usage=None):
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": usage or {"prompt_tokens": 11, "completion_tokens": 7},
        "model": "local-001",
    }


GOOD = (200, completion("<document>A text.</document>"))
CUT = (200, completion("<document>A te", "length"))


@pytest.fixture
def ask(server, tmp_path):
    def ask(requests, url="", price=FREE, **limits):
        generator = OpenAI("local", url or server.address, in_flight=4, timeout=5)
        store = CallStore(tmp_path / "calls.sqlite", "test")
        caller = Caller(generator, store, price, limits=Limits(**({"backoff": 0.0} | limits)))

        async def go():
            try:
                return await caller.ask(requests)
            finally:
                await generator.close()

        return asyncio.run(go()), store

    return ask


@pytest.mark.parametrize("suffix", ["", "/v1", "/v1/"])
def test_a_text_and_what_is_sent_for_it(suffix, server, ask, monkeypatch):
    monkeypatch.setenv("LOCAL_API_KEY", "a-local-key")
    server.answers = [(200, completion("<think>Well.</think><document>A text.</document>"))]
    [answer], store = ask(texts(1), server.address + suffix)
    assert answer.value == "A text."
    [body], [headers] = server.bodies, server.headers
    assert body["messages"][0] == {"role": "system", "content": "S"}
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("local", 400, 1.0)
    assert "response_format" not in body
    assert (headers["path"], headers["Authorization"]) == ("/v1/chat/completions", "Bearer a-local-key")
    assert store.stages()["document"]["output_tokens"] == 7


def test_a_list_is_asked_for_by_its_schema(server, ask):
    server.answers = [(200, completion('Here: {"items": [{"name": "a"}]}'))]
    [answer], _ = ask(lists(1))
    assert answer.value == Items(items=[{"name": "a"}])
    [body] = server.bodies
    assert body["response_format"]["json_schema"]["schema"] == Items.model_json_schema()
    assert json.dumps(Items.model_json_schema()) in body["messages"][-1]["content"]
    assert "Authorization" not in server.headers[0]


def test_failures_are_got_over(server, ask):
    failures = [
        (200, {"error": {"message": "overloaded", "code": "503"}}),
        (200, {"error": "try again"}),
        (200, b"<html><body>Back in a minute</body></html>"),
        (200, b""),
        (200, b"[" * 100_000),
        (200, completion("<document>A te", "error")),
        (502, b"<html><body>Bad gateway</body></html>"),
        (429, {}),
        (500, {}),
        (200, {"choices": []}),
        CUT,
        (200, completion("")),
    ]
    server.answers = [*failures, GOOD]
    [answer], _ = ask(texts(1), attempts=9)
    assert answer.value == "A text."
    assert len(server.bodies) == len(failures) + 1


WHOLE = "<document>A text.</document>"


@pytest.mark.parametrize(
    ("content", "finish", "usage", "status"),
    [
        ([{"type": "text", "text": "<document>A text."}, {"type": "text", "text": "</document>"}], "stop", None, "ok"),
        (WHOLE, "eos_token", {"prompt_tokens": "11", "completion_tokens": "7"}, "ok"),
        (WHOLE, None, {"prompt_tokens": -1, "completion_tokens": float("nan")}, "ok"),
        (WHOLE, ["x"], ["no", "object"], "ok"),
        (WHOLE.replace("A", "A \ud83d"), "stop", None, "ok"),
        ("<think>A draft: <document>No.</document>", "stop", None, "empty"),
        ({"type": "image"}, "stop", None, "empty"),
        (WHOLE, "error", None, "error"),
    ],
)
def test_what_a_server_may_say_otherwise(content, finish, usage, status, server, ask):
    """Each is an answer or of no use, once; what is not counted costs the most that it can."""
    server.answers = [(200, completion(content, finish, usage))]
    [answer], store = ask(texts(1), price=Price(1.0, 1.0, 1.0), attempts=1, patience=0.0)
    assert answer.status is Status(status)
    assert not answer.ok or answer.value.replace("\ufffd ", "") == "A text."
    assert store.spent().paid + store.spent().reserved >= 18e-6


def test_a_byte_that_is_no_text_costs_no_call(server, ask):
    body = json.dumps(completion("<document>A ~ text.</document>")).encode().replace(b"~", b"\xff")
    server.answers = [(200, body)]
    [answer], _ = ask(texts(1))
    assert answer.value == "A \ufffd text." and len(server.bodies) == 1


NAMES = "choices message content finish_reason usage prompt_tokens prompt_tokens_details cached_tokens error code type"
NAMES += " completion_tokens total_tokens text model refusal"
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)


def nested(inside):
    return st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from(NAMES.split()), inside, max_size=5)


@settings(max_examples=60)
@given(st.recursive(LEAVES, nested), st.booleans())
def test_any_body_is_a_reply_or_told(body, whole):
    if whole:
        body = {"choices": [{"message": {"content": body}, "finish_reason": body}], "usage": body, "model": body}
    generator = OpenAI("local", "http://127.0.0.1:1", in_flight=1)
    generator._post = lambda _: body
    try:
        reply = asyncio.run(generator.reply(texts(1)[0]))
    except (Unavailable, UserError) as error:
        assert str(error)
    else:
        assert all(isinstance(value, str) for value in (reply.text, reply.model, reply.detail))
        assert isinstance(reply.finish, Finish)
        assert min(reply.usage.prompt - reply.usage.cached, reply.usage.cached, reply.usage.output) >= 0


@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        # With status 200, as gateways have it.
        (200, {"message": "no credits", "code": 402}, r"has no credit left \(402: .*no credits"),
        (200, {"message": "limit of requests per day", "code": 429}, "the quota of the day is used up"),
        (200, {"message": "who are you", "status": "401"}, "refuses the key"),
        (401, "no, not with a-local-key", "refuses the key"),
        (404, "no, not with a-local-key", "config.calls.url"),
        (400, "no, not with a-local-key", "refuses a request: 400"),
    ],
)
def test_what_the_user_can_mend_is_told_at_once(status, error, told, server, ask, monkeypatch):
    monkeypatch.setenv("LOCAL_API_KEY", "a-local-key")
    server.answers = [(status, {"error": error})]
    with pytest.raises(UserError, match=told) as raised:
        ask(texts(1))
    assert "a-local-key" not in str(raised.value) and len(server.bodies) == 1


def test_what_is_against_a_policy_costs_its_own_request_alone(server, ask):
    blocked = (400, {"error": {"code": "content_filter", "message": "triggered our content management policy"}})
    server.answers = [blocked, GOOD]
    answers, _ = ask(texts(3), attempts=1, in_flight=1)
    assert [answer.status for answer in answers] == [Status.ERROR, Status.OK, Status.OK]


def test_a_reply_that_may_not_be_longer_is_asked_as_before(server, ask):
    """A server whose context has no room for twice as much refuses it: that ends no run."""
    server.answers = [CUT, (400, {"error": "max_tokens is too large"}), GOOD]
    [answer], _ = ask(texts(1))
    assert [body["max_tokens"] for body in server.bodies] == [400, 800, 400]
    assert answer.ok


@pytest.mark.parametrize(
    ("url", "key", "told"),
    [
        ("http://127.0.0.1:1", "a\u200bkey", r"LOCAL_API_KEY holds U\+200B \(zero width space\)"),
        ("http://127.0.0.1\u200b:1", "", r"config.calls.url holds U\+200B"),
        ("http://127.0.0.1:1/a b", "", r"config.calls.url holds U\+0020"),
        ("http:///v1", "", "is no address"),
        ("http://[::1", "", "is no address"),
    ],
)
def test_an_address_or_a_key_that_cannot_be_is_told_before_any_call(url, key, told, monkeypatch):
    monkeypatch.setenv("LOCAL_API_KEY", key)
    with pytest.raises(UserError, match=told):
        OpenAI("local", url, in_flight=1)


def test_a_server_that_is_not_there_is_told(ask):
    with socket.socket() as free, pytest.raises(UserError, match="has not answered"):
        free.bind(("127.0.0.1", 0))  # and does not listen
        ask(texts(1), f"http://127.0.0.1:{free.getsockname()[1]}", patience=0.0)
