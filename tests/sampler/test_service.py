"""Many ask one engine at once: each hears its own answers, and whoever leaves frees its rows."""

import asyncio
import contextlib
import random

import jax
import numpy as np
import pytest

from msm_jax.errors import UserError
from msm_jax.models import DecoderConfig, Execution, Model
from msm_jax.sampler.engine import Engine
from msm_jax.sampler.request import Finish, Sampling
from msm_jax.sampler.service import Service

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
        await asyncio.gather(*(client(number) for number in range(24)))

    asyncio.run(everyone())


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


def test_when_the_engine_fails_all_hear_of_it(service, monkeypatch):
    def fails():
        raise FloatingPointError("broken")

    monkeypatch.setattr(service.engine, "step", fails)
    _, ends = asyncio.run(answer(service, *asked(1), n=3))
    assert set(ends.values()) == {Finish.ERROR} and isinstance(service.failure, FloatingPointError)
    with pytest.raises(RuntimeError, match="the sampler has ended: broken"):
        asyncio.run(answer(service, *asked(1)))
    for sample in service.engine.scheduler.waiting:
        sample.ended = True


def test_pieces_arrive_while_the_answer_is_drawn(service):
    async def count():
        return [piece async for piece in service.stream(*asked(2, max_tokens=20))]

    pieces = asyncio.run(count())
    assert len(pieces) == 5 and [piece.finish for piece in pieces[:-1]] == [None] * 4
    assert np.concatenate([[token.id for token in piece.tokens] for piece in pieces]).shape == (20,)
