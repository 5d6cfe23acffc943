"""The server's life: it binds its port, warms up, answers, and drains when it is told to stop."""

import asyncio
import logging
import os
import socket
import threading
from types import FrameType

import uvicorn

from msm_jax.errors import UserError
from msm_jax.sampler.request import Sampling
from msm_jax.sampler.service import Service
from msm_jax.server.app import App
from msm_jax.server.requests import Limits

_log = logging.getLogger(__name__)
_USUAL = 256  # tokens of a prompt, or of an answer
_KEEP_ALIVE_SECONDS = 60  # longer than clients keep connections, or they would find them closed now and then
_LAST_SECONDS = 5  # for clients to be told, and for the sampler to end its block


def bind(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet. Raises: UserError if the port cannot be had."""
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise UserError(f"--host={host} --port={port}: {error.strerror or error}; choose another") from None
    return bound


async def warm_up(service: Service, rows: int, limits: Limits, longest: int) -> None:
    """Compiles what is asked for first: one answer as long as a chat gets that names no number, and as many of a usual
    length as there are rows. `longest`: tokens that the model was made for."""
    prompt = min(_USUAL, limits.prompt_tokens, longest // 2)
    for n, tokens in ((1, limits.tokens), (rows, min(_USUAL, limits.tokens))):
        asked = Sampling(max_tokens=min(tokens, longest - prompt), ignore_end=True, seed=0)
        pieces = service.stream([0] * prompt, asked, n)
        async for _ in pieces:
            break
        await pieces.aclose()


class Server(uvicorn.Server):
    """Answers until SIGTERM or Ctrl-C. Then it refuses what is new, answers what it has begun within `drain_seconds`,
    and cancels the rest. A second signal ends the process at once.

    Attributes:
      signal: that came, if one did.
      cancelled: questions that were not answered.
    """

    def __init__(self, app: App, drain_seconds: float):
        # What uvicorn finds at its start must not depend on what else is installed.
        super().__init__(
            uvicorn.Config(
                app, loop="asyncio", http="h11", ws="none", lifespan="off", log_config=None, access_log=False,
                server_header=False, timeout_keep_alive=_KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=_LAST_SECONDS,
            )
        )  # fmt: skip
        self._app, self._drain_seconds = app, drain_seconds
        self.signal: int | None = None
        self.cancelled = 0

    async def answer(self, listening: socket.socket) -> None:
        """Returns when the server has drained."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        drains = asyncio.create_task(self._drain())
        try:
            await self.serve(sockets=[listening])
        finally:
            drains.cancel()

    def stop(self) -> None:
        """From any thread."""
        self._app.draining = True
        self._loop.call_soon_threadsafe(self._stop.set)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """In place of uvicorn's, which would close the port before it drains: clients are told why they must wait."""
        if self.signal is not None:
            os.write(2, b"stopped at once\n")
            os._exit(128 + sig)
        self.signal = sig
        self.stop()

    async def _drain(self) -> None:
        await self._stop.wait()
        app = self._app
        if app.active:
            print(
                f"stopping: {app.active} requests are answered first, for {self._drain_seconds:g} s at most", flush=True
            )
        await self._until_idle(self._drain_seconds)
        self.cancelled = app.active
        # The sampler may be in a block, or compile; the loop must not wait for its thread.
        threading.Thread(target=app.service.close, daemon=True).start()
        await self._until_idle(_LAST_SECONDS)
        self.should_exit = True

    async def _until_idle(self, seconds: float) -> None:
        end = self._loop.time() + seconds
        while self._app.active and self._loop.time() < end:
            await asyncio.sleep(0.05)
