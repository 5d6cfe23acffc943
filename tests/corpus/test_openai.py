"""The generator "local" against a small server of chat completions on 127.0.0.1."""

import asyncio
import http.server
import json
import threading

import pytest

from msm_jax.corpus.generators.caller import Caller, Limits
from msm_jax.corpus.generators.openai import OpenAI
from msm_jax.corpus.generators.store import CallStore
from msm_jax.errors import UserError
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
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def completion(text, finish="stop"):
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7},
        "model": "local-001",
    }


def ask(path, url, requests, **limits):
    generator = OpenAI("local", url, in_flight=4, timeout=5)
    store = CallStore(path / "calls.sqlite", "test")
    caller = Caller(generator, store, limits=Limits(**({"backoff": 0.01, "attempts": 3} | limits)))

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
