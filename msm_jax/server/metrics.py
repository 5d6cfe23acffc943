"""What the server tells Prometheus, and how many answers it holds."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from msm_jax.server.errors import ApiError
from msm_jax.server.requests import Asked

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_SPEEDS = (1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """Args:
    rows: answers that are drawn at once.
    waiting: answers that may wait for a row.
    """

    def __init__(self, rows: int, waiting: int):
        self._rows, self._most = rows, rows + waiting
        self.held = self.drawing = 0  # answers that were asked for and have not ended; of those, with a token
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("msm_jax_requests", "Requests.", ["route", "status"], registry=registry)
        self.prompt_tokens = Counter("msm_jax_prompt_tokens", "Tokens of prompts that were asked.", registry=registry)
        self.answer_tokens = Counter("msm_jax_answer_tokens", "Tokens that were drawn.", registry=registry)
        seconds = {"buckets": _SECONDS, "registry": registry}
        self.request_seconds = Histogram("msm_jax_request_seconds", "Of each request.", ["route"], **seconds)
        self.first_token_seconds = Histogram("msm_jax_time_to_first_token_seconds", "Of each answer.", **seconds)
        self.speed = Histogram(
            "msm_jax_tokens_per_second", "Of each answer, after its first block.", buckets=_SPEEDS, registry=registry
        )
        for name, says, value in (
            ("rows", "Answers that can be drawn at once.", lambda: rows),
            ("answers_running", "Answers of which a token was drawn.", lambda: self.drawing),
            ("answers_waiting", "Answers of which none was.", lambda: self.held - self.drawing),
        ):
            Gauge(f"msm_jax_{name}", says, registry=registry).set_function(value)

    def hold(self, asked: Asked) -> "Held":
        """Raises: ApiError if so many answers cannot wait."""
        if asked.samples > self._most:
            raise ApiError(400, f"{asked.samples} answers are asked for; this server holds {self._most} at once", "n")
        if self.held + asked.samples > self._most:
            raise ApiError(
                429, f"{self.held - self._rows} answers wait already; ask again later", code="too_many_waiting",
                headers={"Retry-After": "1"},
            )  # fmt: skip
        return Held(self, asked)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Held:
    """The answers of one request, until `release`."""

    def __init__(self, metrics: Metrics, asked: Asked):
        self._metrics, self._start = metrics, time.monotonic()
        self._left = asked.samples
        self._first: dict[int, tuple[float, int]] = {}  # of answers that are being drawn: when, and tokens since
        metrics.held += asked.samples
        metrics.prompt_tokens.inc(sum(map(len, asked.prompts)))

    def drawn(self, index: int, tokens: int, ended: bool) -> None:
        """`tokens` more of an answer."""
        metrics, now = self._metrics, time.monotonic()
        metrics.answer_tokens.inc(tokens)
        if index in self._first:
            first, count = self._first[index]
            self._first[index] = first, count + tokens
        elif tokens:
            self._first[index] = now, 0
            metrics.drawing += 1
            metrics.first_token_seconds.observe(now - self._start)
        if ended:
            self._left -= 1
            metrics.held -= 1
            if index in self._first:
                first, count = self._first.pop(index)
                metrics.drawing -= 1
                if count and now > first:
                    metrics.speed.observe(count / (now - first))

    def release(self) -> None:
        """What has not ended is of no interest any more."""
        self._metrics.held -= self._left
        self._metrics.drawing -= len(self._first)
        self._left, self._first = 0, {}
