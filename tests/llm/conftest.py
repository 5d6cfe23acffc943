"""What these tests share: a small Gemini, a model in this process, who asks; and a clock that waits for nothing."""

import asyncio
import contextlib
import functools
import selectors
import ssl

import pytest

from msm_jax.llm import caller as caller_module
from msm_jax.llm.batch import BatchCaller
from msm_jax.llm.caller import Caller, Limits
from msm_jax.llm.request import Finish, Reply, Usage
from msm_jax.llm.store import CallStore
from tests.corpus.gemini import PRICE, caller, server
from tests.gemini_server import KEY


@pytest.fixture(autouse=True, scope="session")
def certificates_once():
    """The client of Gemini reads all certificates twice for each caller, which takes a tenth of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


@pytest.fixture
def gemini():
    the_server = server(seed=1)
    yield the_server
    the_server.stop()


@pytest.fixture
def path(tmp_path):
    """Of the store. Whatever a test does, no key is in it."""
    yield tmp_path / "calls.sqlite"
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.iterdir())


@pytest.fixture
def account(path):
    def account(payer="test"):
        with contextlib.closing(CallStore(path, payer)) as store:
            return store.spent()

    return account


async def _closing(the_caller, asker, requests):
    try:
        return await asker.ask(requests)
    finally:
        await the_caller.generator.close()
        the_caller.store.close()


@pytest.fixture
def ask(gemini, path):
    """Asks Gemini as a process does: singly, or by `jobs`, which are settings. `change` gets the caller before."""

    def ask(requests, jobs=None, change=lambda the_caller: None, **settings):
        the_caller = caller(gemini, path, **{"backoff": 0.0, "attempts": 40} | settings)
        change(the_caller)
        asker = the_caller if jobs is None else BatchCaller(the_caller, **{"poll": 0.0} | jobs)
        return asyncio.run(_closing(the_caller, asker, requests))

    return ask


class Clock:
    """Its time is that of the loop in `run`, and jumps to the next timer when nothing else is to be done."""

    now = 1000.0

    def monotonic(self):
        return self.now

    def run(self, work):
        clock = self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout=None):
                clock.now += timeout or 0.0
                return super().select(timeout and 0.0)

        loop = asyncio.SelectorEventLoop(Selector())
        loop.time = self.monotonic
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(work)


class Model:
    """Answers in this process, after `seconds`, or raises what `fault` of the request is. `most`: calls at once."""

    model = "a-model"

    def __init__(self, fault=lambda request: None, seconds=0.3):
        self.fault, self.seconds, self.asked, self.at_once, self.most = fault, seconds, [], 0, 0

    async def reply(self, request):
        self.asked.append(request.prompt)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.at_once -= 1
        if error := self.fault(request):
            raise error
        return Reply("<document>A text.</document>", Finish.STOP, Usage(1, 0, 1), "m")

    def max_output_tokens(self, request):
        return 100

    async def close(self):
        pass


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(caller_module, "time", clock)
    return clock


@pytest.fixture
def ask_model(clock, path):
    """Asks a `Model` as a process does, which gets SIGTERM after so many seconds."""

    def ask_model(model, requests, stop_after=None, **limits):
        async def go():
            the_caller = Caller(model, CallStore(path, "test"), PRICE, Limits(**limits))
            if stop_after is not None:
                asyncio.get_running_loop().call_later(stop_after, the_caller.stop)
            return await _closing(the_caller, the_caller, requests)

        return clock.run(go())

    return ask_model
