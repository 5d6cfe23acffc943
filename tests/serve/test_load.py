"""Many clients, of which some leave: nobody's answer is lost, and no row is kept for those who have left."""

import asyncio
import json
import os
import random
import socket

import httpx
import pytest

from msm_jax.sampler.language_model import load
from msm_jax.server import app as server_app
from msm_jax.server.app import App
from msm_jax.server.requests import Limits
from tests.serve.conftest import ROWS, at_rest, running, wait_until

TEXT = "/v1/completions"
LONG = {"model": "tiny", "prompt": "a", "max_tokens": 256, "n": 64, "ignore_eos": True}


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_rows(app, url, stream):
    """Told by the connection's end alone, also while nothing is sent."""
    left = app.metrics.requests.labels(TEXT, "499")._value.get()
    body = json.dumps(LONG | {"stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        connection.sendall(b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (TEXT.encode(), len(body)))
        connection.sendall(body)
        wait_until(lambda: app.metrics.drawing == ROWS)
        assert not at_rest(app)
    wait_until(lambda: at_rest(app))
    wait_until(lambda: app.metrics.requests.labels(TEXT, "499")._value.get() == left + 1)
    assert app.active == 0


def test_who_leaves_within_a_body(app, url):
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        connection.sendall(b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 90\r\n\r\n{" % TEXT.encode())
        wait_until(lambda: app.active == 1)
    wait_until(lambda: app.active == 0)


def test_gauges_and_counts(app, url):
    def metric(name):
        [line] = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if line.startswith(f"msm_jax_{name} ")]
        return float(line.split()[-1])

    before = metric("answer_tokens_total"), metric("prompt_tokens_total")
    with httpx.stream("POST", url + TEXT, json=LONG | {"stream": True}, timeout=100):
        wait_until(lambda: metric("answers_running") == ROWS)
        assert metric("answers_waiting") == 64 - ROWS
    wait_until(lambda: at_rest(app))
    assert metric("answers_running") == metric("answers_waiting") == 0
    assert metric("answer_tokens_total") > before[0] and metric("prompt_tokens_total") > before[1]
    assert metric("rows") == ROWS


def test_others_are_answered_while_one_text_is_long(app, url):
    """The loop does not tokenise."""
    text = "Which chair is this? " * 40_000

    async def both():
        async with httpx.AsyncClient(base_url=url, timeout=100) as client:
            long = asyncio.create_task(client.post(TEXT, json={"model": "tiny", "prompt": text}))
            waits = []
            while not long.done():
                start = asyncio.get_running_loop().time()
                assert (await client.get("/health")).status_code == 200
                waits.append(asyncio.get_running_loop().time() - start)
            return (await long).status_code, max(waits)

    status, longest = asyncio.run(both())
    assert status == 400 and longest < 0.5


def test_when_the_sampler_fails_all_are_told_and_if_it_goes_on_failing_health_is_bad(
    imported, arms, monkeypatch, caplog
):
    model = load(imported, arms, rows=ROWS)
    app = App(model, "tiny", Limits(), ROWS)
    with running(app) as (url, _), httpx.Client(base_url=url, timeout=100) as client:
        asked = {"model": "tiny", "prompt": "a", "max_tokens": 4}
        with monkeypatch.context() as broken:
            broken.setattr(model.service.engine, "_decode", lambda: 1 / 0)
            first = client.post(TEXT, json=asked)
            assert first.status_code == 503 and first.json()["error"]["code"] == "sampler_failed"
            assert first.headers["retry-after"] and "ask again" in first.json()["error"]["message"]
        assert client.post(TEXT, json=asked).status_code == client.get("/health").status_code == 200
        monkeypatch.setattr(model.service.engine, "_decode", lambda: 1 / 0)
        assert [client.post(TEXT, json=asked | {"prompt": f"a {k}"}).status_code for k in range(4)] == [503] * 4
        assert client.get("/health").status_code == 503
        assert client.post(TEXT, json=asked | {"stream": True}).status_code == 503
        assert caplog.text.count("the sampler has failed") == 1
    assert app.metrics.held == 0


def test_who_does_not_read_a_stream_is_left(imported, arms, monkeypatch):
    """By ASGI itself: a socket takes megabytes before a server feels that nobody reads."""
    monkeypatch.setattr(server_app, "_READING_SECONDS", 0.2)
    app = App(load(imported, arms, rows=ROWS), "tiny", Limits(), ROWS)
    body, sent = json.dumps(LONG | {"stream": True, "n": 4}).encode(), []

    async def ask():
        coming = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive():
            return next(coming, None) or await asyncio.Event().wait()

        async def send(message):
            sent.append(message)
            if len(sent) > 2:
                await asyncio.Event().wait()

        scope = {"type": "http", "method": "POST", "path": TEXT, "headers": [], "query_string": b""}
        await asyncio.wait_for(app(scope, receive, send), 60)

    try:
        asyncio.run(ask())
        assert app.metrics.held == app.active == 0 and len(sent) == 3
        assert app.metrics.requests.labels(TEXT, "499")._value.get() == 1
    finally:
        app.service.close()


def test_a_failure_within_a_stream_is_told_in_it(imported, arms, monkeypatch):
    model = load(imported, arms, rows=ROWS)
    app = App(model, "tiny", Limits(), ROWS)
    step, calls = model.service.engine.step, []

    def fails_later():
        calls.append(1)
        return step() if len(calls) < 4 else 1 / 0

    with running(app) as (url, _):
        monkeypatch.setattr(model.service.engine, "step", fails_later)
        streamed = httpx.post(url + TEXT, json=LONG | {"stream": True, "n": 4}, timeout=100)
        *_, last = [line for line in streamed.text.splitlines() if line]
        assert streamed.status_code == 200 and "[DONE]" not in streamed.text
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "sampler_failed"


def test_what_takes_longer_than_the_drain_is_cancelled_and_told(imported, arms):
    app = App(load(imported, arms, rows=ROWS), "tiny", Limits(), ROWS)
    with running(app, drain_seconds=0.1) as (url, server):
        with httpx.stream("POST", url + TEXT, json=LONG | {"stream": True}, timeout=100) as stream:
            events = stream.iter_lines()
            next(events)
            server.stop()
            *_, last = [line for line in events if line]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopping"
    assert server.cancelled == 1 and app.metrics.held == app.active == 0


_REQUESTS = 10_000
MALFORMED = [b"{", b"[]", b'{"model": "tiny"}', b'{"model": "tiny", "prompt": "a", "n": 0}', b"\xff"]


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_ten_thousand_requests_of_clients_that_come_and_go(imported):
    """A fifth of them malformed, and a fifth of clients that leave: nothing is lost, nothing is kept."""
    rows = 16
    app = App(load(imported, rows=rows), "tiny", Limits(), rows)
    counts, sizes = {"answered": 0, "left": 0, "refused": 0}, {}
    expected = {}

    async def one(client, number):
        rng = random.Random(number)
        if rng.random() < 0.2:
            response = await client.post(TEXT, content=rng.choice(MALFORMED))
            assert response.status_code == 400
            counts["refused"] += 1
            return
        seed, n, stream = rng.randrange(20), rng.choice([1, 1, 2, 3]), rng.random() < 0.5
        body = {"model": "tiny", "prompt": "Which chair", "seed": seed, "n": n, "max_tokens": 12, "stream": stream}
        body["ignore_eos"] = True
        if rng.random() < 0.25:
            try:
                await asyncio.wait_for(client.post(TEXT, json=body | {"max_tokens": 200}), rng.random() * 0.2)
                counts["answered"] += 1
            except TimeoutError:
                counts["left"] += 1
            return
        response = await client.post(TEXT, json=body)
        assert response.status_code == 200, response.text
        texts = [""] * n
        if stream:
            *lines, done = [line for line in response.text.splitlines() if line]
            assert done == "data: [DONE]"
            for line in lines:
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    texts[choice["index"]] += choice["text"]
        else:
            texts = [choice["text"] for choice in response.json()["choices"]]
        assert expected.setdefault(seed, texts)[: len(texts)] == texts[: len(expected[seed])]
        counts["answered"] += 1

    async def everyone(url):
        numbers = iter(range(_REQUESTS))
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)

        async def client():
            async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as session:
                for number in numbers:
                    await one(session, number)
                    if number % (_REQUESTS // 5) == 0 or number == _REQUESTS - 1:
                        sizes[number] = resident()

        await asyncio.gather(*(client() for _ in range(64)))

    with running(app) as (url, _):
        asyncio.run(everyone(url))
        wait_until(lambda: at_rest(app))
        assert app.active == 0
    print(counts, {number: f"{size / 2**20:.0f} MiB" for number, size in sizes.items()})
    assert sum(counts.values()) == _REQUESTS and min(counts.values()) > _REQUESTS // 20
    assert sizes[_REQUESTS - 1] - sizes[_REQUESTS // 5] < 150 * 2**20
