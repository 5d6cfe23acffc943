"""An engine in a thread of its own, for those who ask one after the other: servers, evaluations, corpora."""

import asyncio
import collections
import contextlib
import dataclasses
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence

from msm_jax.data.tokenizer import Tokenizer
from msm_jax.sampler.engine import Engine, Request
from msm_jax.sampler.request import Finish, Sampling, TokenLogprob
from msm_jax.sampler.text import Continuation, end_of

_log = logging.getLogger(__name__)
# Of different requests that fail, without an answer between them, before the service ends: the next may suit the
# memory, and clients ask again what failed.
_FAILURES = 3


@dataclasses.dataclass(frozen=True)
class Piece:
    """What is new of one answer. Joined, the texts of an answer are the whole of it.

    Attributes:
      index: of the sample.
      text: may be empty: a character may need several tokens, and a stop text is held back.
      tokens: since the last piece; after a stop text they go on to the end of its block.
      finish: None while more comes.
      prompt_logprobs: of the prompt's tokens but for the first, where they are wanted, in its first piece.
    """

    index: int
    text: str
    tokens: tuple[TokenLogprob, ...]
    finish: Finish | None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


class SamplerFailed(RuntimeError):
    """The engine failed, of which `__cause__` tells, and what was asked is lost. It may be asked again, unless the
    service has ended with it (`Service.failure`)."""


class Answers:
    """One request, as text. `hear` is what the engine calls; `on_piece` hears of it in the engine's thread."""

    def __init__(
        self, prompt: Sequence[int], sampling: Sampling, n: int, tokenizer: Tokenizer, on_piece: Callable[[Piece], None]
    ):
        start = end_of(prompt, tokenizer)
        self._texts = [Continuation(tokenizer, start, sampling.stop) for _ in range(n)]
        self._on_piece = on_piece
        self.request: Request | None = None  # once it is submitted
        self._begun: set[int] = set()

    def hear(self, index: int, tokens: list[TokenLogprob], finish: Finish | None) -> bool:
        continuation = self._texts[index]
        ids = [token.id for token in tokens]
        if finish is Finish.STOP:
            ids = ids[:-1]  # the id that ended it is no part of the text
        text = continuation.add(ids)
        if finish:
            text += continuation.end()
        if continuation.stopped:
            finish = Finish.STOP
        if text or tokens or finish:
            scores = self.request.prompt_logprobs if self.request and index not in self._begun else None
            self._begun.add(index)
            self._on_piece(Piece(index, text, tuple(tokens), finish, None if scores is None else tuple(scores)))
        return continuation.stopped


class Service:
    """Any thread may ask; one works. Close it when done: what is asked is then cancelled, or with `drain` answered."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer):
        self.engine, self.tokenizer = engine, tokenizer
        self._inbox: collections.deque[Callable[[], None]] = collections.deque()
        self._changed = threading.Condition()
        self._closing = self._cancelling = False
        self._requests: dict[Request, Callable[[Exception], None]] = {}  # how each is told that it failed
        self._failures: set[int] = set()  # since an answer ended, by what was asked
        self.failure: BaseException | None = None  # what ended the thread, if anything did
        self._thread = threading.Thread(target=self._work, name="sampler", daemon=True)
        self._thread.start()

    async def stream(
        self, prompt: Sequence[int], sampling: Sampling, n: int = 1, adapter: int = 0
    ) -> AsyncIterator[Piece]:
        """The pieces of `n` answers, as they come. Who stops listening (`aclose`, or cancels the task) frees its rows.

        Raises: UserError as `Engine.submit` does; SamplerFailed if the engine fails; RuntimeError if the service is
            closed or has ended; what goes wrong in making text of the answer's ids.
        """
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue()
        answers = Answers(prompt, sampling, n, self.tokenizer, lambda piece: _post(loop, pieces, piece))
        submitted: list[Request] = []

        def hear(index: int, tokens: list[TokenLogprob], finish: Finish | None) -> bool:
            if finish is Finish.CANCELLED and not self._cancelling:  # nobody listens, or the engine fails: see `_fail`
                return True
            if finish:
                self._failures.clear()
            try:
                return answers.hear(index, tokens, finish)
            except Exception as error:  # in making text of this answer: those beside it go on
                _post(loop, pieces, error)
                return True

        def submit() -> None:
            try:
                request = self.engine.submit(prompt, sampling, n, hear, adapter)
            except Exception as error:
                _post(loop, pieces, error)
            else:
                submitted.append(request)
                answers.request = request
                self._requests[request] = lambda error: _post(loop, pieces, error)

        self._post(submit)
        left = n
        try:
            while left:
                piece = await pieces.get()
                if isinstance(piece, BaseException):
                    raise piece
                left -= piece.finish is not None
                yield piece
        finally:
            self._post(lambda: self._forget(submitted), even_if_closed=True)

    @property
    def ended(self) -> bool:
        """Whether nothing can be asked any more: it was closed, or has failed."""
        return self._closing or self.failure is not None

    def close(self, drain: bool = False, timeout: float | None = None) -> None:
        """Returns when the thread has ended, or after `timeout` seconds, when what is left is cancelled."""
        with self._changed:
            self._closing, self._cancelling = True, not drain
            self._changed.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            with self._changed:
                self._cancelling = True
            self._thread.join()

    def _post(self, action: Callable[[], None], even_if_closed: bool = False) -> None:
        with self._changed:
            if self.ended and not even_if_closed:
                raise RuntimeError(f"the sampler has ended: {self.failure or 'it was closed'}")
            self._inbox.append(action)
            self._changed.notify()

    def _forget(self, submitted: list[Request]) -> None:
        for request in submitted:
            self.engine.cancel(request)
            self._requests.pop(request, None)

    def _work(self) -> None:
        try:
            while True:
                with self._changed:
                    while not self._inbox and self.engine.idle and not self._closing:
                        self._changed.wait()
                    actions, closing, cancelling = len(self._inbox), self._closing, self._cancelling
                for _ in range(actions):
                    self._inbox.popleft()()
                if cancelling:
                    self._forget(list(self._requests))
                if closing and self.engine.idle:
                    return
                try:
                    self.engine.step()
                except Exception as error:
                    self._failures.add(hash(frozenset((one.prompt, one.n, one.adapter) for one in self._requests)))
                    if len(self._failures) == _FAILURES:
                        raise
                    _log.error("the sampler failed, and goes on; what was asked is lost", exc_info=error)
                    self._fail(error)
        except BaseException as error:
            with self._changed:
                self.failure = error  # nobody can ask from here on
            while self._inbox:  # who asked before has to hear of it too
                with contextlib.suppress(Exception):
                    self._inbox.popleft()()
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """All who wait hear of it."""
        failed = SamplerFailed(f"the sampler failed: {error or type(error).__name__}")
        failed.__cause__ = error
        requests = list(self._requests.items())
        self._forget(list(self._requests))
        for _, tell in requests:
            tell(failed)


def _post(loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue, piece) -> None:
    try:
        loop.call_soon_threadsafe(pieces.put_nowait, piece)
    except RuntimeError:  # the loop has ended: nobody listens
        pass
