"""Routes, and what stands before all of them: the key, the count of requests, errors in OpenAI's form."""

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from msm_jax.errors import UserError
from msm_jax.sampler.language_model import LanguageModel
from msm_jax.server.answers import ChatForm, Draft, TextForm
from msm_jax.server.drawing import draw, while_listening
from msm_jax.server.errors import ApiError, failed, stopping
from msm_jax.server.metrics import Held, Metrics
from msm_jax.server.requests import Asked, Limits, Reader

_log = logging.getLogger(__name__)
_GONE = 499  # the status, in metrics, of a request whose client left
_ASKS_FOR_KEY = {"WWW-Authenticate": "Bearer"}
_BODY_SECONDS = 60.0  # within which a body must have come
_READING_SECONDS = 60.0  # within which a client must take the next event: answers that nobody reads hold their places


class App:
    """The server's ASGI application.

    Args:
      model: with its tokenizer.
      name: of the base, by which clients ask for it.
      rows: answers that are drawn at once, which `model` was loaded for.
      key: that clients must send, if there is one.

    Attributes:
      active: questions that are being answered.
      draining: whether new ones are refused.
    """

    def __init__(self, model: LanguageModel, name: str, limits: Limits, rows: int, key: str | None = None):
        self.service, self.limits = model.service, limits
        self.metrics = Metrics(rows, limits.waiting)
        self.active, self.draining = 0, False
        self.reader = Reader(model, name, limits)
        self._key = None if key is None else f"Bearer {key}".encode()
        self._created, self._told = int(time.time()), False
        self._routes = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._text, methods=["POST"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/models/{name:path}", self._one_model, methods=["GET"]),
                Route("/health", self._health, methods=["GET"]),
                Route("/metrics", self._metrics_text, methods=["GET"]),
            ],
            exception_handlers={
                ApiError: lambda request, error: _told(error),
                UserError: lambda request, error: _told(ApiError(400, str(error))),
                HTTPException: lambda request, error: _told(_of_route(error)),
                ClientDisconnect: lambda request, error: Response(status_code=_GONE),
                Exception: lambda request, error: _told(ApiError(500, "the server has a fault; its log has more")),
            },
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._routes(scope, receive, send)
            return
        start, status = time.monotonic(), [_GONE]

        async def send_and_see(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
            await send(message)

        asks = scope["method"] == "POST" and scope["path"].startswith("/v1/")
        self.active += asks
        try:
            if refused := self._refused(scope, asks):
                await _told(refused)(scope, receive, send_and_see)
            else:
                await self._routes(scope, receive, send_and_see)
        finally:
            self.active -= asks
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(scope.get("msm_jax.status", status[0]))).inc()
            self.metrics.request_seconds.labels(route).observe(time.monotonic() - start)

    @property
    def models(self) -> list[str]:
        """Their names."""
        return self.reader.listed

    @property
    def failed(self) -> bool:
        """Whether the sampler has ended. Why is logged once."""
        failure = self.service.failure
        if failure is not None and not self._told:
            self._told = True
            _log.error("the sampler has failed; every request is answered with 503", exc_info=failure)
        return failure is not None

    def _refused(self, scope: Scope, asks: bool) -> ApiError | None:
        if self._key is not None and scope["path"] != "/health":
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(given, self._key):
                return ApiError(401, "the API key is wrong or missing", None, "invalid_api_key", _ASKS_FOR_KEY)
        return stopping() if self.draining and asks else None

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, self.reader.chat, ChatForm)

    async def _text(self, request: Request) -> Response:
        return await self._answer(request, self.reader.text, TextForm)

    async def _answer(
        self, request: Request, read: Callable[[bytes], Asked], make_form: Callable[[Asked, Any], TextForm]
    ) -> Response:
        body = await _body(request, self.limits.body)
        # A long text takes a while to be tokenised; the loop answers others meanwhile.
        asked = await asyncio.to_thread(read, body)
        if self.failed:
            raise failed()
        form = make_form(asked, self.service.tokenizer)
        held = self.metrics.hold(asked)
        if asked.stream:
            return _Events(self._events(asked, form, held), held)
        try:
            drafts = await while_listening(request.receive, self._drafts(asked, held))
        finally:
            held.release()
        # Hundreds of answers with log-probabilities take long to be written, too.
        return await asyncio.to_thread(lambda: JSONResponse(form.body(drafts)))

    async def _drafts(self, asked: Asked, held: Held) -> list[Draft]:
        drafts = [Draft() for _ in range(asked.samples)]
        async with contextlib.aclosing(draw(self.service, asked, held)) as pieces:
            async for index, piece in pieces:
                drafts[index].add(piece, asked.sampling.logprobs is not None)
        return drafts

    async def _events(self, asked: Asked, form: TextForm, held: Held) -> AsyncIterator[str]:
        for chunk in form.opening():
            yield _event(chunk)
        count = 0
        try:
            async with contextlib.aclosing(draw(self.service, asked, held)) as pieces:
                async for index, piece in pieces:
                    count += len(piece.tokens)
                    for chunk in form.pieces(index, piece):
                        yield _event(chunk)
        except (ApiError, UserError) as error:  # the status was sent already
            known = error if isinstance(error, ApiError) else ApiError(400, str(error))
            yield _event(known.body)
            return
        for chunk in form.closing(count):
            yield _event(chunk)
        yield "data: [DONE]\n\n"

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self.models]})

    async def _one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.reader.adapter_of(name)
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        base = {"parent": self.models[0]} if self.reader.adapters[name] else {}
        return {"id": name, "object": "model", "created": self._created, "owned_by": "msm_jax", **base}

    async def _health(self, request: Request) -> Response:
        if self.failed:
            raise failed()
        if self.draining:
            raise stopping()
        return JSONResponse({"status": "ok"})

    async def _metrics_text(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)


class _Events(StreamingResponse):
    """Server-sent events, for as long as the client listens."""

    def __init__(self, events: AsyncIterator[str], held: Held):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # StreamingResponse itself hears of a client that left only under some servers, or when it sends.
        try:
            async with contextlib.aclosing(self.body_iterator):
                await while_listening(receive, self.stream_response(_in_time(send)))
        except (ClientDisconnect, TimeoutError):
            scope["msm_jax.status"] = _GONE
        finally:
            self._held.release()


def _in_time(send: Send) -> Send:
    async def sending(message: Message) -> None:
        async with asyncio.timeout(_READING_SECONDS):
            await send(message)

    return sending


async def _body(request: Request, limit: int) -> bytes:
    """Raises: ApiError if it is too large, or does not come."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= limit:
                    parts.append(part)
                elif size > 4 * limit:  # a client that is not much above it can be heard out, and reads the answer
                    break
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {_BODY_SECONDS:.0f} seconds") from None
    if size > limit:
        raise ApiError(413, f"the body has more than {limit} bytes")
    return b"".join(parts)


def _event(value: dict[str, Any]) -> str:
    # In ASCII: some clients take more characters than the protocol does for the end of a line.
    return f"data: {json.dumps(value, allow_nan=False)}\n\n"


def _told(error: ApiError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


def _of_route(error: HTTPException) -> ApiError:
    """What Starlette says of a path or a method that there is not."""
    says = {404: "there is no such path here", 405: "this path takes another method"}
    return ApiError(error.status_code, says.get(error.status_code, error.detail), headers=error.headers)
