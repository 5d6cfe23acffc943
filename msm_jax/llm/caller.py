"""Asks a generator: never twice what is in the store, no more than the budget, at the pace that the service bears.

A call that the service turned away (busy, overloaded) is repeated after the delay that it names, or else after a random
one that grows (full jitter). What was answered and is of no use (truncated, blocked, ...) was paid for: it is kept, and
the request is asked again a few times. Which replies come is all that a result depends on, not when.
"""

import asyncio
import contextlib
import dataclasses
import math
import random
import sys
import time
from collections.abc import Callable, Sequence

from msm_jax.errors import Interrupted, UserError
from msm_jax.llm.prices import FREE, Price
from msm_jax.llm.request import (
    Answer,
    Finish,
    Generator,
    Rejected,
    Reply,
    Request,
    Status,
    Unavailable,
    Usage,
    classify,
    judge,
)
from msm_jax.llm.store import CallStore

# Of a request whose reply was cut off, the next one may be twice as long, and the one after that four times.
_LONGER = (1, 2, 4)
# So many errors of one request, while others are answered, mean that the request is at fault.
_HOPELESS = 8
_LONGEST_WAIT = 64  # times the scale
_LATER = "run the same command again later: what was answered is kept"


@dataclasses.dataclass(frozen=True)
class Limits:
    """How calls are made; nothing here changes what is replied."""

    budget: float = math.inf  # dollars that the payer may spend in all, over all runs
    in_flight: int = 32  # calls at once, at most: fewer, while the service says that it is busy
    attempts: int = 4  # how often a request is asked whose replies are of no use
    timeout: float = 600.0  # seconds until a call is given up for lost
    patience: float = 1800.0  # seconds without any answer until the run stops
    backoff: float = 1.0  # seconds, the scale of random delays


class Caller:
    """Asks `generator`; replies are kept in `store`, where the payer's account is.

    `report` is called with a stage, and how many of its distinct requests have their answer, of how many. `stop` ends
    it gracefully: calls under way are waited for, and `ask` raises Interrupted.
    """

    def __init__(
        self,
        generator: Generator,
        store: CallStore,
        price: Price = FREE,
        limits: Limits = Limits(),
        report: Callable[[str, int, int], None] = lambda stage, done, total: None,
    ):
        self.generator, self.store, self.price, self.limits = generator, store, price, limits
        self._report = report
        store.abandon()
        self._pace = _Pace(limits.in_flight, lambda: self.halting)
        self._settled = asyncio.Condition()
        self._under_way = 0  # calls that hold a reservation
        self._answered = 0
        self._last_answer = time.monotonic()
        self.stopping = False
        self._failure: Exception | None = None
        self._given_up: set[str] = set()  # keys of requests that this run had errors for
        self._broken = 0  # requests that no call of this run came to an end for

    def stop(self) -> None:
        self.stopping = True

    async def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers, in the order of the requests. Equal requests are asked once.

        Raises:
            UserError: the budget is spent, the service does not answer, or it refuses the key or the model.
            Interrupted: after `stop`.
        """
        if not requests:
            return []
        keys = [request.key(self.generator.model) for request in requests]
        distinct = dict(zip(keys, requests, strict=True))
        answers = {key: answer for key, request in distinct.items() if (answer := self.known(request, key))}
        waiting = [key for key in distinct if key not in answers]
        stage = requests[0].stage
        self._report(stage, len(answers), len(distinct))
        queue = iter(waiting)

        async def work() -> None:
            for key in queue:
                if self.halting:
                    return
                try:
                    answer = await self._asked(distinct[key], key)
                except (UserError, OSError) as error:
                    # The others meet the same wall; what is under way is waited for, since it is paid for.
                    self._failure = self._failure or error
                    return
                if answer is not None:
                    answers[key] = answer
                    self._report(stage, len(answers), len(distinct))

        self._last_answer = time.monotonic()
        self._failure = None
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self.limits.in_flight, len(waiting))):
                group.create_task(work())
        if self._failure:
            raise self._failure
        if len(answers) < len(distinct):
            raise Interrupted(f"{len(answers)} of {len(distinct)} calls are answered and kept")
        return [answers[key] for key in keys]

    @property
    def halting(self) -> bool:
        """Whether no further call is to be made: after `stop`, or an error that all calls would meet."""
        return self.stopping or self._failure is not None

    def known(self, request: Request, key: str, replies: Sequence[Reply] | None = None) -> Answer | None:
        """The answer, if it takes no (further) call to have it: it is among the replies so far, by default those in the
        store, or all attempts failed."""
        replies = self._replies(key) if replies is None else replies
        answer = judge(request, replies, key)
        return answer if answer and (answer.ok or len(replies) >= self.limits.attempts) else None

    def _replies(self, key: str) -> list[Reply]:
        """Those in the store, without errors of earlier runs: what was at fault may be mended."""
        return [reply for reply in self.store.replies(key) if reply.finish is not Finish.ERROR or key in self._given_up]

    async def _asked(self, request: Request, key: str) -> Answer | None:
        """As `_answer`; whatever else goes wrong with this request, the others go on."""
        name = f"request {key[:12]} of stage {request.stage}"
        try:
            answer = await self._answer(request, key)
        except (UserError, OSError):
            raise
        except Exception as error:
            why = str(error) if isinstance(error, _Broken) else f"{type(error).__name__}: {error}"
            self._broken += 1
            if self._broken >= _HOPELESS > self.store.answered():
                others = f"so it went for {self._broken - 1} others before, and hardly any is answered"
                raise UserError(f"{name}: {why}; {others}") from error
            answer = classify(request, self._give_up(request, key, why), key)
        if answer and answer.status is Status.ERROR:
            told = f"{name}: {answer.why}; the others go on, and the next run asks it again"
            print(told, file=sys.stderr, flush=True)
        return answer

    async def _answer(self, request: Request, key: str) -> Answer | None:
        """Asks until there is an answer; None if it is to stop."""
        replies = self._replies(key)
        while (answer := self.known(request, key, replies)) is None:
            cut = sum(classify(request, reply).status is Status.TRUNCATED for reply in replies)
            # After an error it may have been too much to ask for.
            longer = 1 if replies and replies[-1].finish is Finish.ERROR else _LONGER[min(cut, len(_LONGER) - 1)]
            asked = dataclasses.replace(request, max_tokens=longer * request.max_tokens, attempt=len(replies))
            reply = await self._call(asked, request, key)
            if reply is None:
                return None
            replies.append(reply)
            if reply.finish is Finish.ERROR:
                self._given_up.add(key)  # for this run, once there were as many as it has attempts
        return answer

    async def _call(self, asked: Request, request: Request, key: str) -> Reply | None:
        """One reply, entered under the key of `request`; None if it is to stop."""
        failures = errors = 0
        answered_before, began = self._answered, time.monotonic()
        # An earlier run had errors for it: with no other left to ask, nothing else tells its fault from the service's.
        suspect = any(reply.finish is Finish.ERROR for reply in self.store.replies(key))
        while not self.halting:
            try:
                async with self._pace:
                    if self.halting:
                        return None
                    return await self._try(asked, request, key)
            except Rejected as error:
                # As far as anyone can tell it would say so to all; but not where it took the same, asked for less.
                if not error.alone and asked.max_tokens == request.max_tokens and self.store.answered() < _HOPELESS:
                    raise
                return self._give_up(request, key, str(error))
            except Unavailable as error:
                failures += 1
                errors += not error.busy
                if error.busy:
                    self._pace.slow_down(error.after)
                if (error.after or 0) > self.limits.patience:
                    asks = f"asks to wait for {error.after / 60:.0f} minutes"
                    raise UserError(f"{self.generator.model} {asks} ({error}); {_LATER}") from None
                if time.monotonic() - max(began, self._last_answer) > self.limits.patience:
                    if errors >= _HOPELESS:
                        self._give_up(request, key, str(error))
                    silent = f"has not answered for {self.limits.patience / 60:.0f} minutes"
                    raise UserError(f"{self.generator.model} {silent} ({error}); {_LATER}") from None
                if errors >= _HOPELESS and (suspect or self._answered - answered_before >= _HOPELESS):
                    return self._give_up(request, key, str(error))
                longest = self.limits.backoff * min(_LONGEST_WAIT, 2**failures)
                await self.sleep(error.after if error.after is not None else random.uniform(0, longest))
        return None

    async def _try(self, asked: Request, request: Request, key: str) -> Reply:
        """One call: what it may cost is entered before, and what it did cost after.

        Raises: Unavailable; UserError.
        """
        pending = await self._reserve(asked, key)
        try:
            try:
                async with asyncio.timeout(self.limits.timeout):
                    reply = await self.generator.reply(asked)
            except TimeoutError:
                raise Unavailable(f"no answer in {self.limits.timeout:.0f} s", perhaps_paid=True) from None
            except (Unavailable, UserError):
                raise
            except Exception as error:
                raise _Broken(f"{type(error).__name__}: {error}") from error
            self.store.settle(pending, request, key, reply, self.price.charged(reply, self.most(asked)))
        except BaseException as error:
            # Unless it was turned away, the service may have worked, or go on where this was cancelled.
            turned_away = isinstance(error, UserError) or (isinstance(error, Unavailable) and not error.perhaps_paid)
            (self.store.release if turned_away else self.store.lose)(pending)
            raise
        finally:
            self._under_way -= 1
            async with self._settled:
                self._settled.notify_all()
        self._answered += 1
        self._last_answer = time.monotonic()
        self._pace.speed_up()
        return reply

    def most(self, asked: Request) -> float:
        """Dollars that a call costs at most."""
        return self.price.most(asked, self.generator.max_output_tokens(asked))

    async def _reserve(self, asked: Request, key: str) -> int:
        """Enters the call, once the budget has room for the most that it can cost: others may turn out cheaper."""
        dollars = self.most(asked)
        async with self._settled:
            while (pending := self.store.reserve(key, asked.stage, dollars, self.limits.budget)) is None:
                if not self._under_way:
                    raise UserError(self.broke(dollars))
                if self.halting:
                    raise Unavailable("stopped")
                await self._settled.wait()
            self._under_way += 1
        return pending

    def broke(self, dollars: float) -> str:
        """What to tell the user if the budget has no room for `dollars`."""
        spent = self.store.spent()
        lost = f", and up to ${spent.reserved:.2f} for {spent.lost} calls without a reply" if spent.lost else ""
        return (
            f"the budget of ${self.limits.budget:.2f} leaves no room for the next call, of at most ${dollars:.4f}: "
            f"${spent.paid:.2f} are paid{lost}; raise config.calls.budget and run the same command again, "
            "what was answered is kept"
        )

    def _give_up(self, request: Request, key: str, why: str) -> Reply:
        """Enters that this request, and it alone, is answered with errors: the run goes on without it."""
        self._given_up.add(key)
        reply = Reply("", Finish.ERROR, Usage(), self.generator.model, " ".join(why.split())[:300])
        pending = self.store.reserve(key, request.stage, 0.0, math.inf)
        self.store.settle(pending, request, key, reply, 0.0)
        return reply

    async def sleep(self, seconds: float) -> None:
        """Waits, but not long after `stop`."""
        until = time.monotonic() + seconds
        while not self.halting and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.5))


class _Broken(Exception):
    """A generator failed in a way that it does not know: an OSError of it says nothing of the disk."""


class _Pace:
    """How many calls are under way at once: one more after each round of answers, half as many when the service is busy
    (additive increase, multiplicative decrease), and none while it asks to wait."""

    def __init__(self, most: int, halting: Callable[[], bool]):
        self._most, self._halting = most, halting
        self._limit = float(min(4, most))
        self._starting = True  # until the service is busy for the first time, the number doubles
        self._active = 0
        self._resume = self._last_cut = 0.0
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> None:
        async with self._changed:
            while not self._halting():
                wait = self._resume - time.monotonic()
                if wait <= 0 and self._active < int(self._limit):
                    break
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), min(wait, 0.5) if wait > 0 else 0.5)
            self._active += 1

    async def __aexit__(self, *_) -> None:
        self._active -= 1
        async with self._changed:
            self._changed.notify_all()

    def speed_up(self) -> None:
        self._limit = min(self._most, self._limit + (1 if self._starting else 1 / self._limit))

    def slow_down(self, after: float | None) -> None:
        now = time.monotonic()
        self._resume = max(self._resume, now + (after or 0.0))
        # All calls of a round are turned away together: that is one cut.
        if now - self._last_cut > 1.0:
            self._limit, self._starting, self._last_cut = max(1.0, self._limit / 2), False, now
