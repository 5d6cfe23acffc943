"""The generator "local" against a small server of chat completions on 127.0.0.1."""

import asyncio
import http.server
import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm_jax.errors import UserError
from msm_jax.llm.caller import Caller, Limits
from msm_jax.llm.openai import OpenAI
from msm_jax.llm.prices import FREE, Price
from msm_jax.llm.request import Finish, Status, Unavailable
from msm_jax.llm.store import CallStore
from tests.corpus.gemini import Items, lists, texts


class Server:
    """`answers`: (status, body) one after the other; the last for all that follow."""

    def __init__(self, *answers):
        self.answers, self.bodies, self.headers = list(answers), [], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                outer.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                outer.headers.append(dict(self.headers) | {"path": self.path})
                status, body = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        # A server looks this often whether it is to stop.
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def completion(text, finish="stop", usage=None):
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": usage or {"prompt_tokens": 11, "completion_tokens": 7},
        "model": "local-001",
    }


def ask(path, url, requests, price=FREE, **limits):
    generator = OpenAI("local", url, in_flight=4, timeout=5)
    store = CallStore(path / "calls.sqlite", "test")
    caller = Caller(generator, store, price, limits=Limits(**({"backoff": 0.01, "attempts": 3} | limits)))

    async def go():
        try:
            return await caller.ask(requests)
        finally:
            await generator.close()

    return asyncio.run(go()), store


@pytest.mark.parametrize("suffix", ["", "/v1", "/v1/"])
def test_a_text_and_what_is_sent_for_it(suffix, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_API_KEY", "a-local-key")
    with Server((200, completion("<think>Well.</think><document>A text.</document>"))) as server:
        [answer], store = ask(tmp_path, server.url + suffix, texts(1))
        assert answer.value == "A text."
        [body] = server.bodies
        assert body["messages"][0] == {"role": "system", "content": "S"}
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("local", 400, 1.0)
        assert "response_format" not in body
        assert server.headers[0]["path"] == "/v1/chat/completions"
        assert server.headers[0]["Authorization"] == "Bearer a-local-key"
    assert store.stages()["document"]["output_tokens"] == 7


def test_a_list_is_asked_for_by_its_schema(tmp_path):
    with Server((200, completion('Here: {"items": [{"name": "a"}]}'))) as server:
        [answer], _ = ask(tmp_path, server.url, lists(1))
        assert answer.value == Items(items=[{"name": "a"}])
        [body] = server.bodies
        assert body["response_format"]["json_schema"]["schema"] == Items.model_json_schema()
        assert json.dumps(Items.model_json_schema()) in body["messages"][-1]["content"]
        assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    "failure",
    [
        (200, {"error": {"message": "overloaded", "code": "503"}}),
        (200, {"error": "try again"}),
        (200, b"<html><body>Back in a minute</body></html>"),
        (200, b""),
        (200, b"[" * 100_000),
        (200, completion("<document>A te", "error")),
        (502, b"<html><body>Bad gateway</body></html>"),
        (500, {}),
        (503, {}),
        (429, {}),
        (200, b"not json"),
        (200, {"choices": []}),
        (200, completion("<document>A te", "length")),
        (200, completion("")),
    ],
)
def test_failures_are_got_over(failure, tmp_path):
    with Server(failure, (200, completion("<document>A text.</document>"))) as server:
        [answer], _ = ask(tmp_path, server.url, texts(1))
        assert answer.value == "A text."


@pytest.mark.parametrize(
    ("content", "finish", "usage", "status"),
    [
        ([{"type": "text", "text": "<document>A text."}, {"type": "text", "text": "</document>"}], "stop", None, "ok"),
        ("<document>A text.</document>", "eos_token", {"prompt_tokens": "11", "completion_tokens": "7"}, "ok"),
        ("<document>A text.</document>", "STOP", {"prompt_tokens": -1, "completion_tokens": None}, "ok"),
        ("<document>A text.</document>", None, {"prompt_tokens": 11, "completion_tokens": float("nan")}, "ok"),
        ("<document>A text.</document>", ["x"], ["no", "object"], "ok"),
        ("<document>A \ud83d text.</document>", "stop", None, "ok"),
        ("<think>A draft: <document>No.</document>", "stop", None, "empty"),
        (None, "stop", None, "empty"),
        ({"type": "image"}, "stop", None, "empty"),
        ("<document>A text.</document>", "error", None, "error"),
    ],
)
def test_what_a_server_may_say_otherwise(content, finish, usage, status, tmp_path):
    """Each is an answer or of no use, once; what is not counted costs the most that it can."""
    body = completion(content, finish, usage)
    price = Price(1.0, 1.0, 1.0)
    with Server((200, body)) as server:
        [answer], store = ask(tmp_path, server.url, texts(1), price=price, attempts=1, patience=0.0)
    assert answer.status is Status(status)
    assert not answer.ok or answer.value.replace("\ufffd ", "") == "A text."
    assert store.spent().paid + store.spent().reserved >= 18e-6


def test_a_byte_that_is_no_text_costs_no_call(tmp_path):
    body = json.dumps(completion("<document>A ~ text.</document>")).encode().replace(b"~", b"\xff")
    with Server((200, body)) as server:
        [answer], _ = ask(tmp_path, server.url, texts(1))
        assert len(server.bodies) == 1
    assert answer.value == "A \ufffd text."


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inside: (
            st.lists(inside, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    "choices message content finish_reason usage prompt_tokens prompt_tokens_details cached_tokens "
                    "completion_tokens total_tokens error code type text model refusal".split()
                ),
                inside,
                max_size=5,
            )
        ),
    ),
    st.booleans(),
)
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
    ("body", "told"),
    [
        ({"error": {"message": "no credits", "code": 402}}, r"has no credit left \(402: .*no credits"),
        ({"error": {"message": "limit of requests per day", "code": 429}}, "the quota of the day is used up"),
        ({"error": {"message": "who are you", "status": "401"}}, "refuses the key"),
    ],
)
def test_an_error_that_comes_with_status_200_is_told_at_once(body, told, tmp_path):
    with Server((200, body)) as server:
        with pytest.raises(UserError, match=told):
            ask(tmp_path, server.url, texts(1))
        assert len(server.bodies) == 1


def test_what_is_against_a_policy_costs_its_own_request_alone(tmp_path):
    blocked = (400, {"error": {"code": "content_filter", "message": "triggered our content management policy"}})
    with Server(blocked, (200, completion("<document>A text.</document>"))) as server:
        answers, _ = ask(tmp_path, server.url, texts(3), attempts=1, in_flight=1)
    assert [answer.status for answer in answers] == [Status.ERROR, Status.OK, Status.OK]


def test_a_reply_that_may_not_be_longer_is_asked_as_before(tmp_path):
    """A server whose context has no room for twice as much refuses it: that ends no run."""
    cut, refused = (200, completion("<document>A te", "length")), (400, {"error": "max_tokens is too large"})
    with Server(cut, refused, (200, completion("<document>A text.</document>"))) as server:
        [answer], _ = ask(tmp_path, server.url, texts(1))
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


@pytest.mark.parametrize(
    ("status", "told"), [(401, "refuses the key"), (404, "config.calls.url"), (400, "refuses a request: 400")]
)
def test_what_the_user_can_mend_is_told(status, told, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_API_KEY", "a-local-key")
    with Server((status, {"error": "no, not with a-local-key"})) as server:
        with pytest.raises(UserError, match=told) as error:
            ask(tmp_path, server.url, texts(1))
    assert "a-local-key" not in str(error.value)


def test_a_server_that_is_not_there_is_told(tmp_path):
    with Server((200, {})) as server:
        url = server.url
    with pytest.raises(UserError, match="has not answered"):
        ask(tmp_path, url, texts(1), patience=0.1)
