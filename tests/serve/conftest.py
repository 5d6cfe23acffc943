"""A server of a small random model, for the time of a file of tests."""

import asyncio
import contextlib
import threading
import time

import httpx
import openai
import pytest

from msm_jax.sampler.language_model import load
from msm_jax.server.app import App
from msm_jax.server.process import Server, bind
from msm_jax.server.requests import Limits
from tests.tiny_checkpoints import write_adapter

ROWS = 4  # few shapes, and so few compilations


@contextlib.contextmanager
def running(app, drain_seconds=1.0):
    """`app` answers at the address that this gives, and with the server."""
    server, listening = Server(app, drain_seconds), bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread = threading.Thread(target=lambda: asyncio.run(server.answer(listening)), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield url, server
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def wait_until(holds, seconds=60.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never held"
        time.sleep(0.01)


def at_rest(app):
    """Whether nothing is left of any request."""
    scheduler = app.service.engine.scheduler
    return not app.metrics.held and not app.metrics.drawing and scheduler.idle and not app.service._requests


@pytest.fixture(scope="session")
def arms(imported, adapter, tmp_path_factory):
    other = write_adapter(tmp_path_factory.mktemp("other") / "stage", imported, scale=0.4)
    return {"one": adapter, "two": other}


@pytest.fixture(scope="session")
def app(imported, arms):
    model = load(imported, arms, rows=ROWS, thinking="off")
    made = App(model, "tiny", Limits(prompt_tokens=8500, tokens=4096, n=64, waiting=64, body=1 << 20), ROWS)
    yield made
    model.service.close()


@pytest.fixture(scope="session")
def url(app):
    with running(app) as (found, _):
        yield found


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=100) as made:
        yield made


@pytest.fixture
def post(url):
    """Sends a body; returns the answer."""
    with httpx.Client(base_url=url, timeout=100) as session:
        yield lambda path, **request: session.post(path, **request)
