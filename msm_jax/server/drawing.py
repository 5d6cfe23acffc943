"""A request's answers, as the sampler draws them, for as long as its client listens."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from msm_jax.sampler.request import Finish
from msm_jax.sampler.service import Piece, SamplerFailed, Service
from msm_jax.sampler.text import count_until_stop
from msm_jax.server.errors import ApiError, failed, stopping
from msm_jax.server.metrics import Held
from msm_jax.server.requests import Asked

T = TypeVar("T")


async def draw(service: Service, asked: Asked, held: Held) -> AsyncIterator[tuple[int, Piece]]:
    """(index of the answer, what is new of it). Who stops listening (`aclose`) frees its rows.

    Raises: ApiError if the sampler has failed, or is being stopped.
    """
    ids: list[list[int]] = [[] for _ in range(asked.samples)]
    async with contextlib.aclosing(_merged(service, asked)) as pieces:
        async for index, piece in pieces:
            if piece.finish is Finish.ERROR:
                raise ApiError(500, "the model gave no numbers for the next token")
            if piece.finish is Finish.CANCELLED:
                raise stopping()
            if asked.sampling.stop:
                piece = _until_stop(service, asked, index, piece, ids[index])
            held.drawn(index, len(piece.tokens), piece.finish is not None)
            yield index, piece


async def while_listening(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves. The request's body must have been read.

    Raises: ClientDisconnect.
    """
    tasks = [asyncio.create_task(work), asyncio.create_task(_leaves(receive))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ClientDisconnect
    finally:
        await _cancelled(tasks)


async def _merged(service: Service, asked: Asked) -> AsyncIterator[tuple[int, Piece]]:
    """The answers to all prompts at once."""
    found: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()

    async def listen(place: int, prompt: tuple[int, ...]) -> None:
        stream = service.stream(prompt, asked.sampling_of(place), asked.n, asked.adapter)
        try:
            async with contextlib.aclosing(stream) as pieces:
                async for piece in pieces:
                    found.put_nowait((place * asked.n + piece.index, piece))
        except SamplerFailed:
            found.put_nowait(failed(for_good=service.failure is not None))
        except Exception as error:  # whatever it is: nobody else tells those who wait
            found.put_nowait((failed() if service.failure else stopping()) if service.ended else error)

    tasks = [asyncio.create_task(listen(place, prompt)) for place, prompt in enumerate(asked.prompts)]
    try:
        left = asked.samples
        while left:
            item = await found.get()
            if isinstance(item, Exception):
                raise item
            left -= item[1].finish is not None
            yield item
    finally:
        await _cancelled(tasks)


def _until_stop(service: Service, asked: Asked, index: int, piece: Piece, ids: list[int]) -> Piece:
    """Without the tokens that were drawn after a stop text; `ids` are those before, and take the new ones."""
    sure, new = len(ids), piece.tokens
    ids += [token.id for token in new]
    if piece.finish is not Finish.STOP:
        return piece
    prompt = asked.prompts[index // asked.n]
    count = count_until_stop(service.tokenizer, prompt, ids, asked.sampling.stop, sure)
    return Piece(piece.index, piece.text, new[: count - sure], piece.finish)


async def _leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(tasks: list[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
