"""Many ask one engine at once: each hears its own answers, and whoever leaves frees its rows."""

import asyncio
import concurrent.futures
import contextlib
import random
import threading

import jax
import numpy as np
import pytest

from msm_jax.errors import UserError
from msm_jax.models import DecoderConfig, Execution, Model
from msm_jax.sampler.engine import Engine
from msm_jax.sampler.request import Finish, Sampling
from msm_jax.sampler.service import SamplerFailed, Service

CONFIG = DecoderConfig(
    vocab_size=16, num_layers=1, width=8, mlp_width=12, num_heads=2, num_kv_heads=1, head_size=4, dtype="float32",
    max_length=128,
)  # fmt: skip
MODEL = Model(CONFIG, None, Execution(stacked=False))


class Letters:
    """Each id is a letter."""

    special_tokens, byte_ids = {}, frozenset()

    def decode(self, ids):
        return "".join(chr(ord("a") + i) for i in ids)


@pytest.fixture
def service():
    base = Model(CONFIG)
    params = base.unstack(jax.tree.map(lambda x: x * 3, base.init(jax.random.key(0))))
    made = Service(Engine(MODEL, params, None, vocabulary=16, rows=16, steps=4, chunk=64), Letters())
    yield made
    made.close()
    assert not made.engine.scheduler.live and made.engine.scheduler.idle


def asked(number, **settings):
    return [number % 16, 3, number % 7], Sampling(**{"max_tokens": 9, "seed": number} | settings)


async def answer(service, prompt, sampling, n=1):
    texts, ends = [""] * n, {}
    async for piece in service.stream(prompt, sampling, n):
        assert piece.index not in ends, "an answer that has ended goes on"
        texts[piece.index] += piece.text
        if piece.finish:
            ends[piece.index] = piece.finish
    assert len(ends) == n
    return texts, ends


def test_each_hears_its_own_answers_while_others_leave(service):
    expected = {number: asyncio.run(answer(service, *asked(number), n=2))[0] for number in range(8)}

    async def client(number):
        rng = random.Random(number)
        for _ in range(3):
            wanted = rng.randrange(8)
            task = asyncio.create_task(answer(service, *asked(wanted), n=2))
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() * 0.05)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):  # it may have had its answer already
                    await task
            else:
                assert (await task)[0] == expected[wanted]

    async def everyone():
        await asyncio.gather(*(client(number) for number in range(64)))

    asyncio.run(everyone())
    service.close(drain=True)
    assert not service._requests, "what nobody waits for is kept"


def test_threads_with_loops_of_their_own_hear_their_own_answers(service):
    expected = [asyncio.run(answer(service, *asked(number)))[0] for number in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: asyncio.run(answer(service, *asked(number % 8)))[0], range(32)))
    assert found == expected * 4


def test_who_stops_listening_frees_the_rows(service, monkeypatch):
    steps, step = [], service.engine.step
    monkeypatch.setattr(service.engine, "step", lambda: steps.append(1) or step())

    async def leave():
        pieces = service.stream(*asked(1, max_tokens=100), n=16)
        await anext(pieces)
        await pieces.aclose()
        return await answer(service, *asked(2))

    asyncio.run(leave())
    service.close(drain=True)
    assert not service._requests and len(steps) < 20, "100 tokens are 25 steps"


def test_an_answer_whose_text_cannot_be_made_fails_alone(service, monkeypatch):
    expected = [asyncio.run(answer(service, *asked(number, max_tokens=40), n=2)) for number in range(6)]
    decode = service.tokenizer.decode

    def fails(ids):
        if len(ids) > 3 and ids[:3] in ([2, 3, 2], [4, 3, 4]):  # what is drawn after the prompts of 2 and 4
            raise ValueError("no text")
        return decode(ids)

    monkeypatch.setattr(service.tokenizer, "decode", fails)

    async def everyone():
        asking = (answer(service, *asked(number, max_tokens=40), n=2) for number in range(6))
        return await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 60)

    for number, found in enumerate(asyncio.run(everyone())):
        if number in (2, 4):
            assert isinstance(found, ValueError), "nobody may be left waiting"
        else:
            assert found == expected[number]
    service.close(drain=True)
    assert not service.failure and not service._requests


def test_threads_may_ask_one_engine_and_go_on_with_it_together():
    """As `generate` does: each goes on until nothing is left of anybody's."""
    base = Model(CONFIG)
    engine = Engine(MODEL, base.unstack(base.init(jax.random.key(0))), None, vocabulary=16, rows=4, steps=4, chunk=64)

    def ask(number):
        heard = []
        for _ in range(6):
            engine.submit(*asked(number), 1, lambda index, tokens, finish: heard.append(finish))
            engine.run()
        return [finish for finish in heard if finish]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(16))) == [[Finish.LENGTH] * 6] * 16


def test_a_step_that_found_nothing_to_do_says_nothing_of_what_is_asked_after_it():
    base = Model(CONFIG)
    engine = Engine(MODEL, base.unstack(base.init(jax.random.key(0))), None, vocabulary=16, rows=4, steps=4, chunk=64)
    step, asking = engine.step, []

    def step_while_others_ask():
        """Another thread has done what was left when this one comes to it, and then somebody asks."""
        if not asking:
            while not engine.scheduler.idle:
                step()
            done = step()
            thread = threading.Thread(target=engine.submit, args=(*asked(2), 1, lambda *_: None))
            asking.append(thread)
            thread.start()
            thread.join(0.2)
            return done
        return step()

    engine.step = step_while_others_ask
    engine.submit(*asked(1), 1, lambda *_: None)
    engine.run()
    asking[0].join()


def test_what_cannot_be_asked_reaches_only_who_asked(service):
    async def both():
        good = asyncio.create_task(answer(service, *asked(1)))
        with pytest.raises(UserError, match="a prompt has no token"):
            await answer(service, [], Sampling())
        return await good

    assert len(asyncio.run(both())[0][0]) == 9


def test_stop_texts_end_an_answer_over_the_borders_of_pieces(service):
    [whole], _ = asyncio.run(answer(service, *asked(5, max_tokens=40)))
    stop = whole[10:13]
    [text], ends = asyncio.run(answer(service, *asked(5, max_tokens=40, stop=(stop,))))
    assert text == whole[: whole.index(stop)] and ends == {0: Finish.STOP}
    [text], ends = asyncio.run(answer(service, *asked(5, max_tokens=40, stop=(whole[-3:] + "z",))))
    assert text == whole and ends == {0: Finish.LENGTH}


@pytest.mark.parametrize("drain", [True, False])
def test_closing_answers_what_was_asked_or_cancels_it(service, drain):
    async def ask():
        task = asyncio.create_task(answer(service, *asked(3, max_tokens=100)))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(service.close, drain)
        with pytest.raises(RuntimeError, match="the sampler has ended: it was closed"):
            await answer(service, *asked(4))
        return await task

    _, ends = asyncio.run(ask())
    assert ends[0] is Finish.LENGTH or not drain


def test_when_the_engine_fails_all_hear_of_it_and_the_next_are_answered(service, monkeypatch):
    expected = asyncio.run(answer(service, *asked(2), n=3))
    real, broken = service.engine._decode, []

    def decode():
        if broken:
            raise FloatingPointError(broken.pop())
        return real()

    monkeypatch.setattr(service.engine, "_decode", decode)
    for _ in range(2):  # two failures with an answer between them and the next are not four in a row
        for why in ("broken", "broken again"):
            broken.append(why)
            with pytest.raises(SamplerFailed, match=f"^the sampler failed: {why}$") as told:
                asyncio.run(answer(service, *asked(2), n=3))
            assert isinstance(told.value.__cause__, FloatingPointError)
        assert asyncio.run(answer(service, *asked(2), n=3)) == expected
    service.close(drain=True)
    assert service.failure is None and not service._requests


def test_an_engine_that_fails_again_and_again_ends_the_service(service, monkeypatch):
    def fails():
        raise FloatingPointError("broken")

    monkeypatch.setattr(service.engine, "_decode", fails)
    for number, ended in ((1, False), (1, False), (1, False), (1, False), (2, False), (3, True)):
        assert not service.ended, "one request that fails whenever it is asked says nothing of others"
        with pytest.raises(SamplerFailed, match="the sampler failed: broken"):
            asyncio.run(answer(service, *asked(number), n=3))
        service._thread.join(10 if ended else 0)
    assert isinstance(service.failure, FloatingPointError)
    with pytest.raises(RuntimeError, match="the sampler has ended: broken"):
        asyncio.run(answer(service, *asked(1)))


def test_who_asked_just_before_the_engine_failed_for_good_hears_of_it(service, monkeypatch):
    """The thread was at work, and had not seen the request yet."""
    working, asked_too = threading.Event(), threading.Event()

    def fails():
        working.set()
        asked_too.wait(10)
        raise KeyboardInterrupt("broken")  # what ends a thread at once

    monkeypatch.setattr(service.engine, "_decode", fails)

    async def both():
        first = asyncio.create_task(answer(service, *asked(1)))
        await asyncio.to_thread(working.wait, 10)
        second = asyncio.create_task(answer(service, *asked(2), n=2))
        await asyncio.sleep(0.01)
        asked_too.set()
        return await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 10)

    assert [type(error) for error in asyncio.run(both())] == [SamplerFailed] * 2
    assert service.ended


def test_closing_in_time_cancels_what_takes_longer(service):
    async def ask():
        task = asyncio.create_task(answer(service, *asked(3, max_tokens=120), n=16))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(service.close, True, 0.01)
        return await task

    _, ends = asyncio.run(ask())
    assert set(ends.values()) <= {Finish.CANCELLED, Finish.LENGTH} and not service._thread.is_alive()


def test_pieces_arrive_while_the_answer_is_drawn(service):
    async def count():
        return [piece async for piece in service.stream(*asked(2, max_tokens=20))]

    pieces = asyncio.run(count())
    assert len(pieces) == 5 and [piece.finish for piece in pieces[:-1]] == [None] * 4
    assert np.concatenate([[token.id for token in piece.tokens] for piece in pieces]).shape == (20,)
