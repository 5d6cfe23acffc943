"""What the server refuses: each in one line, with the field's name, in OpenAI's form, and never with 500."""

import json

import httpx
import hypothesis
import hypothesis.strategies as st
import pytest

from tests.serve.conftest import at_rest, wait_until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Which chair?"}]
GOOD = {CHAT: {"model": "tiny", "messages": MESSAGES, "max_tokens": 2}, TEXT: {"model": "tiny", "prompt": "a"}}
TOOL = {"type": "function", "function": {"name": "add"}}
CALL = {"type": "function", "function": {"name": "add", "arguments": "[]"}}


def check(response, status=400, param=None, line=""):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param and "\n" not in error["message"] and line in error["message"], error
    return error


# (path, the fields in place of the good ones, the field that the error names, what it says)
REFUSED = [
    (CHAT, {"messages": []}, "messages", "must hold a message"),
    (CHAT, {"messages": "Hi"}, "messages", "must be a valid"),
    (CHAT, {"messages": [{"role": "wizard", "content": "a"}]}, "messages.0.role", "must be 'system', 'developer'"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages.0.content", "is missing"),
    (CHAT, {"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "must be a text, or a list"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content", "must be a text"),
    (CHAT, {"messages": [{"role": "user", "content": "a", "name": "Ann"}]}, "messages.0.name", "writes no names"),
    (CHAT, {"messages": [{"role": "user", "content": "a", "weight": 1}]}, "messages.0.weight", "no such field"),
    (CHAT, {"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]}, "messages.0.role", "no tool_calls"),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [CALL]}]}, "messages.0.tool_calls", "JSON object"),
    (CHAT, {"messages": [{"role": "user", "content": "<|im_end|>"}]}, "messages", "control token"),
    (CHAT, {"messages": [{"role": "tool", "content": "a", "tool_call_id": "1"}]}, "messages", "knows no tools"),
    (CHAT, {"tools": [TOOL]}, "messages", "knows no tools"),
    (CHAT, {"tools": [{"type": "retrieval"}]}, "tools.0.type", "must be 'function'"),
    (CHAT, {"tool_choice": "required"}, "tool_choice", "cannot be made to call"),
    (CHAT, {"tool_choice": {"type": "function"}}, "tool_choice", "cannot be made to call"),
    (CHAT, {"parallel_tool_calls": False}, "parallel_tool_calls", "can do nothing else"),
    (CHAT, {"response_format": {"type": "json_object"}}, "response_format.type", "must be 'text'"),
    (CHAT, {"reasoning_effort": "high"}, "reasoning_effort", "must be 'none'"),
    (CHAT, {"chat_template_kwargs": {"tone": 1}}, "chat_template_kwargs.tone", "no such field"),
    (CHAT, {"top_logprobs": 2}, "top_logprobs", "logprobs is not"),
    (CHAT, {"top_logprobs": 21, "logprobs": True}, "top_logprobs", "at most 20"),
    (CHAT, {"logprobs": 1}, "logprobs", "valid boolean"),
    (CHAT, {"max_tokens": 2, "max_completion_tokens": 3}, "max_completion_tokens", "differ"),
    (CHAT, {"max_completion_tokens": 5000, "max_tokens": None}, "max_completion_tokens", "at most 4096"),
    (CHAT, {"audio": {}}, "audio", "no such field"),
    (CHAT, {"functions": []}, "functions", "no such field"),
    (TEXT, {"prompt": []}, "prompt", "must hold a text"),
    (TEXT, {"prompt": ""}, "prompt", "no token to go on from"),
    (TEXT, {"prompt": [[]]}, "prompt", "no token to go on from"),
    (TEXT, {"prompt": {}}, "prompt", "must be a text, a list of texts"),
    (TEXT, {"prompt": [1, "a"]}, "prompt", "must be a text, a list of texts"),
    (TEXT, {"prompt": [1.5]}, "prompt", "must be a text, a list of texts"),
    (TEXT, {"prompt": [True]}, "prompt", "must be a text, a list of texts"),
    (TEXT, {"prompt": [999999]}, "prompt", "has the id 999999"),
    (TEXT, {"prompt": [-1]}, "prompt", "has the id -1"),
    (TEXT, {"prompt": ["a"] * 200}, "prompt", "more than can wait"),
    (TEXT, {"prompt": ["a"] * 20, "n": 20}, "n", "holds 68 at once"),
    (TEXT, {"prompt": [5] * 8200}, "prompt", "leave no room for an answer"),
    (TEXT, {"prompt": None}, "prompt", "must be a text"),
    (TEXT, {"echo": True, "stream": True}, "echo", "comes as a whole"),
    (TEXT, {"echo": 1}, "echo", "valid boolean"),
    (TEXT, {"max_tokens": 0}, "max_tokens", "must be 1 or more"),
    (TEXT, {"prompt": [5] * 4000, "n": 64, "echo": True, "logprobs": 20, "max_tokens": 0}, "logprobs", "more than one"),
    (TEXT, {"best_of": 2}, "best_of", "must be 1"),
    (TEXT, {"suffix": "b"}, "suffix", "must be ''"),
    (TEXT, {"logprobs": 21}, "logprobs", "at most 20"),
    (TEXT, {"logprobs": True}, "logprobs", "valid integer"),
    (TEXT, {"temperature": -1}, "temperature", "must be 0 or more"),
    (TEXT, {"temperature": "hot"}, "temperature", "must be a valid number"),
    (TEXT, {"temperature": True}, "temperature", "must be a valid number"),
    (TEXT, {"top_p": 0}, "top_p", "above 0"),
    (TEXT, {"top_k": -2}, "top_k", "0 or more"),
    (TEXT, {"min_p": 2}, "min_p", "at most 1"),
    (TEXT, {"repetition_penalty": 0}, "repetition_penalty", "0.01 or more"),
    (TEXT, {"presence_penalty": 1e9}, "presence_penalty", "at most 100"),
    (TEXT, {"seed": -1}, "seed", "0 or more"),
    (TEXT, {"seed": 2**70}, "seed", "2**63 - 1"),
    (TEXT, {"n": 0}, "n", "1 or more"),
    (TEXT, {"n": 65}, "n", "at most 64"),
    (TEXT, {"n": 1.5}, "n", "valid integer"),
    (TEXT, {"max_tokens": 0}, "max_tokens", "1 or more"),
    (TEXT, {"max_tokens": 4097}, "max_tokens", "at most 4096"),
    (TEXT, {"stop": ""}, "stop", "not empty"),
    (TEXT, {"stop": 5}, "stop", "must be a text"),
    (TEXT, {"stop": ["a"] * 17}, "stop", "at most 16 texts"),
    (TEXT, {"stop": ["a<|im_end|>"]}, "stop", "control token"),
    (TEXT, {"stop_token_ids": [10**6]}, "stop_token_ids", "ids are from 0"),
    (TEXT, {"stop_token_ids": list(range(50))}, "stop_token_ids", "too many"),
    (TEXT, {"logit_bias": {"a": 1}}, "logit_bias", "has the id 'a'"),
    (TEXT, {"logit_bias": {"99999": 1}}, "logit_bias", "has the id '99999'"),
    (TEXT, {"logit_bias": {"1": "b"}}, "logit_bias", "up to 1000"),
    (TEXT, {"logit_bias": {"1": 1e6}}, "logit_bias", "up to 1000"),
    (TEXT, {"logit_bias": {str(i): 1 for i in range(65)}}, "logit_bias", "at most 64"),
    (TEXT, {"stream_options": {"include_usage": True}}, "stream_options", "stream is not"),
    (TEXT, {"stream": "yes"}, "stream", "valid boolean"),
    (TEXT, {"temprature": 1}, "temprature", "no such field"),
    (TEXT, {"model": None}, "model", "valid string"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "param", "line"), REFUSED)
def test_a_field_is_refused_by_its_name(post, path, fields, param, line):
    check(post(path, json=GOOD[path] | fields), 400, param, line)


def test_lengths(post):
    error = check(post(TEXT, json=GOOD[TEXT] | {"prompt": [5] * 8000, "max_tokens": 200}), 400, "max_tokens")
    assert error["code"] == "context_length_exceeded"
    error = check(post(TEXT, json=GOOD[TEXT] | {"prompt": [5] * 9000}), 400, "prompt", "at most 8500 are read")
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b"[" * 100_000, b'{"model":' * 5000, b"not json",
        b'{"model": "tiny", "prompt": "a", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "a", "temperature": 1e999}',
        b'{"model": "tiny", "prompt": "\\ud800"}',
        b'{"model": "tiny", "prompt": "\xed\xa0\x80"}',
        b'{"model": "tiny", "prompt": "a", "logit_bias": {"1": Infinity}}',
        b'{"model": "tiny", "prompt": [' + b"9" * 5000 + b"]}",
        b'{"prompt": "a"}', b'{"model": "tiny"}',
    ],
)  # fmt: skip
def test_bodies_that_are_none(post, body):
    for path in GOOD:
        response = post(path, content=body)
        assert response.status_code == 400 and set(response.json()) == {"error"}, response.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["messages", "prompt", "n", "seed", "temperature", "top_p", "top_k", "logit_bias", "stop", "stop_token_ids",
     "logprobs", "top_logprobs", "stream", "stream_options", "tools", "tool_choice", "chat_template_kwargs", "model",
     "echo", "suffix", "max_tokens", "max_completion_tokens", "response_format", "content", "user"]
)  # fmt: skip


def test_whatever_is_sent_is_answered_or_refused(url, app):
    """Straight to what reads bodies, and now and then through the whole server."""
    from msm_jax.errors import UserError
    from msm_jax.server.errors import ApiError

    @hypothesis.settings(max_examples=300)
    @hypothesis.given(st.sampled_from([CHAT, TEXT]), st.dictionaries(NAMES, JSON, max_size=3), JSON)
    def send(path, fields, part):
        body = GOOD[path] | {"max_tokens": 1} | fields
        if part and path == CHAT and "messages" not in fields:
            body["messages"] = [{"role": "user", "content": part}, *MESSAGES]
        read = app.reader.chat if path == CHAT else app.reader.text
        try:
            read(json.dumps(body).encode())
        except ApiError as error:
            assert 400 <= error.status < 500 and error.message
        except UserError as error:
            assert str(error)

    send()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404), ("GET", CHAT, 405), ("POST", "/health", 405), ("GET", "/", 404),
        ("GET", "/v1/models/none", 404), ("POST", "/v1/embeddings", 404), ("DELETE", TEXT, 405),
    ],
)  # fmt: skip
def test_routes_that_are_none(url, method, path, status):
    response = httpx.request(method, url + path)
    assert response.status_code == status and response.json()["error"]["type"] == "invalid_request_error"


def test_an_unknown_model(post):
    for path in GOOD:
        assert check(post(path, json=GOOD[path] | {"model": "x"}), 404, "model")["code"] == "model_not_found"


def test_a_body_that_is_too_large(post):
    for size in (1 << 20, 3 << 20, 30 << 20):
        response = post(TEXT, content=b" " * size + json.dumps(GOOD[TEXT]).encode())
        check(response, 413, None, "more than 1048576 bytes")
    parts = (b" " * 65536 for _ in range(100))
    check(post(TEXT, content=parts), 413, None, "more than 1048576 bytes")


def test_a_key(app, url, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(app, "_key", b"Bearer secret-key")
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret-key"}):
            for path in ("/v1/models", "/metrics", "/v1/nothing"):
                response = httpx.get(url + path, headers=headers)
                assert check(response, 401)["type"] == "authentication_error"
            check(httpx.post(url + TEXT, json=GOOD[TEXT], headers=headers), 401)
        assert httpx.get(url + "/health").status_code == 200
        good = {"Authorization": "Bearer secret-key"}
        assert httpx.get(url + "/v1/models", headers=good).status_code == 200
        assert httpx.post(url + TEXT, json=GOOD[TEXT], headers=good, timeout=30).status_code == 200
    assert "secret" not in "".join(capfd.readouterr())


def test_a_fault_of_the_server_is_no_trace_for_the_client(app, url, post, monkeypatch, caplog):
    def breaks(body):
        raise ZeroDivisionError("inner matters")

    monkeypatch.setattr(app.reader, "text", breaks)
    response = post(TEXT, json=GOOD[TEXT] | {"prompt": "a private text"})
    assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"
    wait_until(lambda: "inner matters" in caplog.text)
    assert "inner" not in response.json()["error"]["message"] and "private" not in caplog.text


def test_too_many_wait(app, url, post):
    held = app.metrics.held
    app.metrics.held = 80
    try:
        response = post(TEXT, json=GOOD[TEXT])
        assert check(response, 429, None, "answers wait already")["type"] == "rate_limit_error"
        assert int(response.headers["Retry-After"]) >= 1
    finally:
        app.metrics.held = held
    assert post(TEXT, json=GOOD[TEXT]).status_code == 200
    wait_until(lambda: at_rest(app))
