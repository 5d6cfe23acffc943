"""The training loop: the same for pretraining, MSM and AFT.

A run is resumed exactly: a checkpoint holds the parameters, the optimiser and the position in the data, which is all
the state there is. Steps since the last checkpoint are done again, from the same parameters, on the same batches.

Shapes: A accumulation steps, B rows of the global batch, T tokens of a row, S sources.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from msm_jax.checkpoints.orbax import Checkpoints
from msm_jax.errors import Interrupted, UserError
from msm_jax.parallel.hosts import of_first, stop_requested
from msm_jax.train.metrics import Clock, MetricsLog
from msm_jax.train.step import StepFunction, StepMetrics, TrainState

PyTree = Any
HostBatch = dict[str, np.ndarray]

_PREFETCHED_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long, how large, how often."""

    steps: int  # of the optimiser, in the whole run
    batch_size: int  # rows of the global batch, over all hosts
    accumulation: int = 1  # microbatches that a batch is split into, for memory; changes no result beyond rounding
    log_every: int = 10  # steps between two points in TensorBoard
    checkpoint_every: int = 100  # steps between two checkpoints, at most; the last step is always saved
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 2  # newest ones that stay on disk

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, int) and value < 1:
                raise UserError(f"{name} is {value}; it must be 1 or more")
        if self.batch_size % self.accumulation:
            raise UserError(
                f"batch_size={self.batch_size} is not divisible by accumulation={self.accumulation}; change one of them"
            )


def train(
    *,
    config: LoopConfig,
    step_fn: StepFunction,
    state: TrainState,
    frozen: PyTree | None,
    dataset: grain.MapDataset,
    source_names: list[str],
    batch_sharding: NamedSharding,
    folder: pathlib.Path,
    arrays: str | os.PathLike,
    saved: Callable[[], None],
    identity: str,
    run_config: Mapping[str, Any],
    flops_per_token: float,
    peak_flops: float | None,
    describe: Callable[[HostBatch], str] | None,
    label: str,
) -> TrainState:
    """Trains from the newest good checkpoint in `folder`, or from `state`, to `config.steps`.

    Writes `arrays/checkpoints/STEP`, `folder/metrics.jsonl` and TensorBoard's events.

    Args:
      step_fn: `(state, frozen, batch) -> (state, StepMetrics)`; donates the state.
      state: freshly initialised, on the mesh; donated. Gives shapes and shardings of what is restored.
      frozen: the base under an adapter, or None; not saved.
      dataset: element s is this host's share of global batch s: tokens, segments, positions int32[b, T],
        mask bool[b, T], source int32[b].
      batch_sharding: of arrays [A, B/A, T]; its spec cut to the rank is that of [A, B/A].
      folder: local; each host has its own, and the first writes to it. `arrays`: folder or URL that all hosts share.
      saved: called when a checkpoint is made, after the logs of its steps are written.
      identity: hash of all that determines the run; a checkpoint of another identity is refused.
      run_config: parameters and inputs of the run, as JSON, kept in every checkpoint.
      flops_per_token, peak_flops, label: as `MetricsLog` has them.
      describe: decodes a host batch with its loss mask, for TensorBoard's text page; None leaves it out.

    Raises:
      UserError: the loss or its gradient is not finite; the data are too short; the folder is of another run.
      Interrupted: SIGTERM or Ctrl-C came, and the state is saved. A second Ctrl-C ends the process at once.
    """
    clock = Clock()
    if len(dataset) < config.steps:
        raise UserError(f"{label}: {config.steps} steps need as many batches, and the data give {len(dataset)}")
    with contextlib.ExitStack() as stack:
        signals = _Signals(stack)
        with clock.lost():
            checkpoints = Checkpoints(f"{os.fspath(arrays)}/checkpoints", identity, config.keep_checkpoints, run_config)
            stack.callback(checkpoints.close)
            state, start, data = _restore(checkpoints, state)
        index = data["next_index"]
        log = MetricsLog(
            folder=folder,
            sources=source_names,
            start=start,
            steps=config.steps,
            tokens=data["tokens"],
            log_every=config.log_every,
            flops_per_token=flops_per_token,
            peak_flops=peak_flops,
            clock=clock,
            label=label,
        )
        stack.callback(log.close)
        # Made ahead on a thread. More threads are slower: rows come from mapped memory.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCHED_BATCHES)
        batches = stack.enter_context(contextlib.closing(iter(dataset[index:].to_iter_dataset(options))))

        stop, done = False, start
        running = None  # (step, index of its batch, metrics): dispatched, and its metrics are still to be read
        timer = _Timer(config.checkpoint_minutes, start)
        for step in range(start, config.steps):
            with clock.lost():
                batch = next(batches)
            if step == 0 and describe is not None:
                log.text("batch 0, trained tokens marked", describe(batch), step)
            on_devices = _place(batch, config.accumulation, batch_sharding)
            with clock.lost() if step == start else contextlib.nullcontext():  # the first call compiles
                state, metrics = step_fn(state, frozen, on_devices)
            # Only now that the devices have their next step is the one before waited for.
            _settle(running, log, checkpoints)
            running = step, index, metrics
            index += 1

            done = step + 1
            stop = signals.stop_requested()
            save = stop or done == config.steps or done % config.checkpoint_every == 0
            if save or timer.asks(done):
                _settle(running, log, checkpoints)
                running = None
                save = save or timer.due(done)
            if save:
                with clock.lost():
                    checkpoints.save(done, state, {"next_index": index, "tokens": log.tokens})
                    log.flush()
                    saved()
                timer.restart(done)
            if stop:
                break
        checkpoints.wait()
        if stop or signals.stop_requested():  # or while the last checkpoint was written
            raise signals.interrupted(label, done, config.steps)
    return state


def _restore(checkpoints: Checkpoints, fresh: TrainState) -> tuple[TrainState, int, dict[str, int]]:
    """The state to start from, its step, and its position in the data."""
    restored = checkpoints.restore(fresh)
    if restored is None:
        return fresh, 0, {"next_index": 0, "tokens": 0}
    step, state, data = restored
    for leaf in jax.tree.leaves(fresh):
        leaf.delete()  # the caller still holds it, and two states may be more than fits
    return state, step, data


def _place(batch: HostBatch, accumulation: int, sharding: NamedSharding) -> dict[str, jax.Array]:
    """[b, ...] on each host -> [A, B/A, ...] over all devices."""

    def place(rows: np.ndarray) -> jax.Array:
        microbatches = rows.reshape(accumulation, -1, *rows.shape[1:])
        cut = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[: microbatches.ndim]))
        return jax.make_array_from_process_local_data(cut, microbatches)

    return {name: place(rows) for name, rows in batch.items()}


def _settle(running: tuple[int, int, StepMetrics] | None, log: MetricsLog, checkpoints: Checkpoints) -> None:
    """Waits for the step that runs, if one does, and logs it if its update was made."""
    if running is None:
        return
    step, index, metrics = running
    metrics = jax.device_get(metrics)
    if not metrics.finite:
        rows = Counter(log.sources[source] for source in np.ravel(metrics.source))
        found = ", ".join(f"{name} {count}" for name, count in rows.items())
        kept = checkpoints.latest
        raise UserError(
            f"loss is {metrics.loss_sum / max(metrics.weight, 1.0)} and the gradient norm {metrics.grad_norm} at step "
            f"{step} (batch {index}, rows: {found}); the update was not made, "
            + ("there is no checkpoint yet" if kept is None else f"the checkpoint of step {kept} is kept")
            + "; lower the stage's optim.learning_rate (with another --workdir), or look at the data with --mode=show"
        )
    log.record(step, metrics)


class _Timer:
    """Says after which steps a checkpoint is due by the clock.

    The clocks of hosts differ, so all go by that of the first. To hear of it stops what their devices do; so they ask
    when it must be due by the pace so far, and until then after 1, 2, 4, 8, ... steps, for the pace may change.
    """

    def __init__(self, minutes: float, step: int):
        self._seconds = 60 * minutes
        self.restart(step)

    def restart(self, step: int) -> None:
        self._since, self._start, self._next = time.monotonic(), step, step + 1

    def asks(self, done: int) -> bool:
        """Whether to ask `due` after this step, on all hosts; no step may be under way then."""
        if jax.process_count() > 1:
            return done >= self._next
        return time.monotonic() - self._since >= self._seconds

    def due(self, done: int) -> bool:
        elapsed = of_first(time.monotonic() - self._since)
        steps = done - self._start
        left = self._seconds - elapsed
        self._next = done + max(1, int(min(steps, left * steps / max(elapsed, 1e-9))))
        return left <= 0


class _Signals:
    """Turns SIGTERM and Ctrl-C into a question that the loop asks after every step; all hosts get the same answer.

    A second Ctrl-C is left to the system, which ends the process at once, whatever it waits for. What it was about to
    save is then not there, and what is there is whole.
    """

    def __init__(self, stack: contextlib.ExitStack):
        """Whoever handled the signals before does so again when `stack` is left."""
        self._number = 0
        self._several = jax.process_count() > 1
        # With several hosts SIGTERM is JAX's own: its handler agrees with the others on the step to stop at.
        handled = (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM)
        main = threading.current_thread() is threading.main_thread()
        for number in handled:
            # What a shell runs in the background may ignore Ctrl-C: it is meant for others then.
            if main and signal.getsignal(number) != signal.SIG_IGN:
                stack.callback(signal.signal, number, signal.signal(number, self._request))

    def stop_requested(self) -> bool:
        return stop_requested() if self._several else bool(self._number)

    def interrupted(self, label: str, done: int, steps: int) -> Interrupted:
        name = "Ctrl-C" if self._number == signal.SIGINT else "SIGTERM"
        saved = f"all {steps} steps are done and saved"
        if done < steps:
            saved = f"{done} of {steps} steps are done and saved, and step {done + 1} is next"
        return Interrupted(f"{label}: {name}; {saved}", self._number or signal.SIGTERM)

    def _request(self, number: int, _: Any) -> None:
        self._number = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            # Not by print, which may itself be what was interrupted.
            os.write(2, b"\nstopping: this step is finished and saved; Ctrl-C once more drops it\n")
            if self._several:
                os.kill(os.getpid(), signal.SIGTERM)
