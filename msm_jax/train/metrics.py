"""What a run tells: `metrics.jsonl`, TensorBoard, and a line of progress.

S: sources.
"""

import contextlib
import dataclasses
import json
import pathlib
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tensorboardX

from msm_jax.storage.progress import Progress

# Fields of metrics.jsonl that differ from run to run; all others are equal in a resumed and an uninterrupted run.
TIMINGS = ("tokens_per_second", "step_seconds", "mfu", "goodput", "memory_bytes")


class Clock:
    """Wall time since the run was (re)started, and the part of it that was not training."""

    def __init__(self):
        self._start = time.perf_counter()
        self._lost = 0.0

    @contextlib.contextmanager
    def lost(self) -> Iterator[None]:
        """Counts the body as lost: restoring, compiling, saving, waiting for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._lost += time.perf_counter() - start

    def goodput(self) -> float:
        """Share of the wall time that was not lost, 0 to 1."""
        return 1.0 - self._lost / (time.perf_counter() - self._start)


@dataclasses.dataclass(kw_only=True)
class MetricsLog:
    """Records every step, in order; only the first host writes.

    - `metrics.jsonl` has one line per step. Lines from step `start` on, which a killed run wrote after its last
      checkpoint, are cut off, so a resumed run leaves the same lines as an uninterrupted one, apart from `TIMINGS`.
    - TensorBoard has a point per `log_every` steps: token-weighted means of the losses since the last point, and the
      last value of the rest.
    - stderr has a progress bar, or without a terminal a line now and then.

    Rates are wall time between log points, whatever happened in between, apart from the first step, which compiles.
    """

    folder: pathlib.Path  # of the run; made if missing. TensorBoard names the run after it
    sources: list[str]  # S names
    start: int  # first step to come
    steps: int  # of the whole run
    tokens: int  # not padding, so far
    log_every: int
    flops_per_token: float  # of the model, forward and backward
    peak_flops: float | None  # FLOP/s of all devices together; None leaves `mfu` out
    clock: Clock
    label: str  # of the progress bar

    def __post_init__(self):
        self._window: list[Any] = []
        self._timed_steps = self._timed_tokens = 0
        self._timed_since: float | None = None
        self._rate: float | None = None  # tokens per second
        self._writes = jax.process_index() == 0
        if self._writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lines = _open_lines(self.folder / "metrics.jsonl", self.start)
            # The name of an event file holds only seconds, and two resumes may share one.
            named = {"purge_step": self.start, "filename_suffix": f".{self.start}"}
            self._board = tensorboardX.SummaryWriter(str(self.folder), flush_secs=10, **named)
            self._progress = Progress(self.label, self.steps, "step", self.start)

    def text(self, tag: str, text: str, step: int) -> None:
        if self._writes:
            self._board.add_text(tag, f"```\n{text}\n```", step)

    def record(self, step: int, metrics: Any) -> None:
        """Takes the `StepMetrics` of `step` as numpy arrays on the host."""
        self.tokens += int(metrics.tokens)
        self._window.append(metrics)
        self._timed_steps += 1
        self._timed_tokens += int(metrics.tokens)
        state = {
            "learning_rate": float(metrics.learning_rate),
            "grad_norm": float(metrics.grad_norm),
            "trained_tokens": int(metrics.weight),
            "tokens": self.tokens,
        }
        fields = {"step": step, **self._losses([metrics]), **state}
        if (step + 1) % self.log_every == 0 or step + 1 == self.steps:
            timings = self._timings()
            if self._writes:
                for name, value in (self._losses(self._window) | state | timings).items():
                    # TensorBoard shows what stands before the slash as one group of curves.
                    group = "" if name.startswith("loss") else "speed/" if name in TIMINGS else "state/"
                    if value is not None:
                        self._board.add_scalar(group + name, value, step)
            self._window.clear()
            fields |= timings
        elif self._timed_since is None:
            self._restart_timing()
        if self._writes:
            self._lines.write(json.dumps(fields) + "\n")
            # The line of progress has the newest rate that is known.
            self._rate = fields.get("tokens_per_second", self._rate)
            loss = "no trained token" if fields["loss"] is None else f"loss {fields['loss']:.3f}"
            self._progress.update(step + 1, f"{loss}, {self._rate:,.0f} tokens/s" if self._rate else loss)

    def flush(self) -> None:
        """TensorBoard's file, too, holds all that was recorded."""
        if self._writes:
            self._board.flush()

    def close(self) -> None:
        if self._writes:
            with contextlib.ExitStack() as stack:  # a full disk must not keep the others from being closed
                for part in (self._board, self._progress, self._lines):
                    stack.callback(part.close)

    def _losses(self, window: list[Any]) -> dict[str, float | None]:
        """Mean loss per trained token, over all and per source; None where a source has no trained token."""

        def sums(metrics: Any, name: str) -> np.ndarray:
            """float64[S + 1]: over the rows of each source, then over all."""
            rows = np.ravel(getattr(metrics, f"row_{name}"))
            return np.append(np.bincount(np.ravel(metrics.source), rows, len(self.sources)), getattr(metrics, name))

        losses, weights = (sum(sums(metrics, name) for metrics in window) for name in ("loss_sum", "weight"))
        means = [float(total / weight) if weight else None for total, weight in zip(losses, weights, strict=True)]
        by_source = {f"loss/{name}": mean for name, mean in zip(self.sources, means[:-1], strict=True)}
        return {"loss": means[-1], **by_source}

    def _timings(self) -> dict[str, float]:
        """`TIMINGS` since the last call; rates need a step after the first."""
        fields = {"goodput": self.clock.goodput(), "memory_bytes": _peak_memory()}
        if self._timed_since is not None:
            seconds = time.perf_counter() - self._timed_since
            fields["tokens_per_second"] = self._timed_tokens / seconds
            fields["step_seconds"] = seconds / self._timed_steps
            if self.peak_flops is not None:
                fields["mfu"] = fields["tokens_per_second"] * self.flops_per_token / self.peak_flops
        self._restart_timing()
        return fields

    def _restart_timing(self) -> None:
        self._timed_since, self._timed_steps, self._timed_tokens = time.perf_counter(), 0, 0


def _open_lines(path: pathlib.Path, start: int):
    """Opens for appending, without the lines of step `start` and beyond and without a torn last line."""
    path.touch()
    kept = 0
    with path.open("rb+") as file:
        for line in file:
            try:
                if json.loads(line)["step"] >= start or not line.endswith(b"\n"):
                    break
            except (ValueError, KeyError, TypeError):
                break
            kept += len(line)
        file.truncate(kept)
    return path.open("a", encoding="utf-8", buffering=1)  # a line is with the system before its step is in a checkpoint


def _peak_memory() -> int:
    """Bytes: peak of the first device where it tells, else of this process."""
    if statistics := jax.local_devices()[0].memory_stats():
        return statistics["peak_bytes_in_use"]
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte
