import dataclasses
import json
import os
import signal
import threading
import types

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from msm_jax.errors import Interrupted, UserError
from msm_jax.train import loop
from msm_jax.train.loop import LoopConfig, train
from msm_jax.train.metrics import TIMINGS
from msm_jax.train.step import TrainState
from msm_jax.train.step import StepMetrics

ROWS, TOKENS, ENDLESS = 4, 8, 2**40


class Rows:
    """Batch s is full of s + 1; its rows are of sources 0, 0, 0, 1."""

    def __init__(self, on_batch=lambda index: None):
        self._on_batch = on_batch

    def __len__(self):
        return ENDLESS

    def __getitem__(self, index):
        self._on_batch(index)
        tokens = np.full((ROWS, TOKENS), index + 1, np.int32)
        return {"tokens": tokens, "mask": tokens > 0, "source": np.array([0, 0, 0, 1], np.int32)}


def metrics_of(loss, finite, step, source):
    return StepMetrics(
        loss_sum=loss * 4,
        weight=jnp.float32(4),
        tokens=jnp.float32(ROWS * TOKENS),
        row_loss_sum=jnp.full(source.shape, loss),
        row_weight=jnp.ones(source.shape),
        source=source,
        grad_norm=jnp.float32(1),
        learning_rate=jnp.float32(step),
        finite=finite,
    )


def make_step(bad_token=-1):
    """`history` is a polynomial in the batches seen: it tells their order."""

    def step(state, frozen, batch):
        assert batch["tokens"].shape == (2, ROWS // 2, TOKENS) and batch["source"].shape == (2, ROWS // 2)
        token = batch["tokens"][0, 0, 0]
        finite = token != bad_token
        history = jnp.where(finite, state.params["history"] * 31 + token.astype(jnp.uint32) * frozen, 0)
        loss = jnp.where(finite, 1.0 / token, jnp.nan)
        metrics = metrics_of(loss, finite, state.step, batch["source"])
        return TrainState(state.step + 1, {"history": history}, state.opt_state), metrics

    return jax.jit(step, donate_argnums=0)


@pytest.fixture(scope="module")
def sharding():
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1], axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec(None, "data", None))


@pytest.fixture
def run(tmp_path, sharding):
    def run(name="run", rows=None, step_fn=None, dataset=None, config=None, **changes):
        everywhere = NamedSharding(sharding.mesh, PartitionSpec())
        state = TrainState(jnp.int32(0), {"history": jnp.uint32(0)}, (jnp.zeros(3),))
        fields = {"steps": 10, "batch_size": ROWS, "accumulation": 2, "log_every": 4, "checkpoint_every": 3}
        arguments = {
            "config": LoopConfig(**fields | (config or {})),
            "step_fn": step_fn or make_step(),
            "state": jax.device_put(state, everywhere),
            "frozen": jax.device_put(jnp.uint32(1), everywhere),
            "dataset": dataset or grain.MapDataset.source(rows or Rows()),
            "source_names": ["msm", "replay"],
            "batch_sharding": sharding,
            "folder": tmp_path / name,
            "arrays": tmp_path / name,
            "saved": lambda: None,
            "identity": "run",
            "run_config": {"steps": 10},
            "flops_per_token": 1.0,
            "peak_flops": 1.0,
            "describe": None,
            "label": "test",
        }
        return train(**arguments | changes)

    return run


def history(steps):
    value = 0
    for token in range(1, steps + 1):
        value = (value * 31 + token) % 2**32
    return value


def read_lines(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def signal_at(batch, number):
    """Signals this process while this batch is made, a few steps ahead of its use; once."""
    sent = []

    def on_batch(index):
        if index == batch and not sent:
            sent.append(index)
            os.kill(os.getpid(), number)

    return Rows(on_batch)


def test_sees_each_batch_once_in_order(run, tmp_path):
    state = run()
    assert (int(state.step), int(state.params["history"])) == (10, history(10))
    lines = read_lines(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(10))
    assert [line["loss"] for line in lines] == [float(np.float32(4) * np.float32(1 / t)) / 4 for t in range(1, 11)]
    assert lines[-1]["tokens"] == 10 * ROWS * TOKENS
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["10", "9"]
    meta = json.loads((tmp_path / "run" / "checkpoints" / "10" / "meta" / "metadata").read_text())
    assert meta["config"] == {"steps": 10}


@pytest.mark.parametrize(
    ("batch", "number", "name", "status"),
    [
        *[(batch, signal.SIGTERM, "SIGTERM", 143) for batch in (0, 3, 6, 9)],
        *[(batch, signal.SIGINT, "Ctrl-C", 130) for batch in (0, 5)],
    ],
)
def test_a_signal_saves_and_the_next_run_resumes_exactly(run, tmp_path, batch, number, name, status):
    whole = run("whole")
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as interrupted:
        run("stopped", rows=signal_at(batch, number))
    assert signal.getsignal(number) is before and interrupted.value.status == status
    done = max(int(path.name) for path in (tmp_path / "stopped/checkpoints").iterdir())
    assert str(interrupted.value) == f"test: {name}; " + (
        f"{done} of 10 steps are done and saved, and step {done + 1} is next"
        if done < 10
        else "all 10 steps are done and saved"
    )
    resumed = run("stopped")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert read_lines(tmp_path / "stopped") == read_lines(tmp_path / "whole")


def test_ctrl_c_that_is_ignored_stays_so(run):
    """As of a job in the background of a script: the one who presses it means another."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert int(run(rows=signal_at(3, signal.SIGINT)).step) == 10
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_checkpoint_is_due_by_the_clock_too(run, tmp_path, monkeypatch):
    """On a clock by which a step takes three minutes and a half: after every third."""
    clock, saved = [0.0], []
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    step_fn = make_step()

    def slow_step(*arguments):
        clock[0] += 210
        return step_fn(*arguments)

    run(step_fn=slow_step, config={"checkpoint_every": 1000}, saved=lambda: saved.append(clock[0] / 210))
    assert saved == [3, 6, 9, 10]
    assert int(run(step_fn=make_step()).params["history"]) == history(10)


@pytest.mark.parametrize("seconds", [[30] * 300, [1] * 100 + [30] * 100, [600] * 4, [400, 1, 1, 700, 1, 1]])
def test_hosts_save_at_the_same_steps_by_the_clock_of_the_first(monkeypatch, seconds):
    """Though their clocks go differently; and never later than after twice the time, or one step."""
    clock = [0.0]
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(loop, "jax", types.SimpleNamespace(process_count=lambda: 2))
    first, second = loop._Timer(10, 0), loop._Timer(10, 0)
    asked, since = 0, 0.0
    for done, lasted in enumerate(seconds, start=1):
        clock[0] += lasted
        assert first.asks(done) == second.asks(done)
        if not first.asks(done):
            continue
        asked += 1
        told = clock[0] - first._since
        monkeypatch.setattr(loop, "of_first", lambda value, told=told: told)
        due = first.due(done)
        second._since -= 77  # it goes by the other's clock
        assert second.due(done) == due == (told >= 600)
        if due:
            assert clock[0] - since <= max(1200, 600 + lasted)
            since = clock[0]
            first.restart(done)
            second.restart(done)
    assert clock[0] - since < 1200 and asked < len(seconds) / 3 + 6


def test_what_is_done_is_not_done_again(run):
    run()
    used = make_step()
    state = run(step_fn=used, rows=Rows(on_batch=pytest.fail))
    assert int(state.params["history"]) == history(10)
    assert used._cache_size() == 0


def test_runs_outside_the_main_thread(run):
    states = []
    thread = threading.Thread(target=lambda: states.append(run()))
    thread.start()
    thread.join()
    assert int(states[0].step) == 10


def test_the_data_go_on_from_the_saved_position(run, tmp_path):
    run(config={"steps": 6})
    seen = set()
    run(config={"steps": 8}, rows=Rows(on_batch=seen.add))
    assert min(seen) == 6


def test_a_loss_that_is_not_finite_stops_the_run(run, tmp_path):
    with pytest.raises(UserError) as raised:
        run(step_fn=make_step(bad_token=9))
    message = str(raised.value)
    assert "loss is nan" in message and "at step 8 (batch 8, rows: msm 3, replay 1)" in message
    assert "the checkpoint of step 6 is kept" in message and "\n" not in message
    assert read_lines(tmp_path / "run")[-1]["step"] == 7
    assert int(run().params["history"]) == history(10)


def test_a_first_loss_that_is_not_finite(run):
    with pytest.raises(UserError, match=r"at step 0 \(batch 0.*there is no checkpoint yet"):
        run(step_fn=make_step(bad_token=1))


def test_never_saves_after_a_step_that_is_not_finite(run, tmp_path):
    with pytest.raises(UserError, match="the checkpoint of step 3 is kept"):
        run(step_fn=make_step(bad_token=6))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["3"]


class Spy:
    """A value on the "device" that tells when it is read."""

    def __init__(self, value, events, name):
        self._value, self._events, self._name = np.asarray(value), events, name

    def __array__(self, *_, **__):
        self._events.append(self._name)
        return self._value


def test_metrics_are_read_one_step_behind(run):
    events = []

    def step_fn(state, frozen, batch):
        step = int(state.step)
        events.append(f"dispatch {step}")
        metrics = metrics_of(jnp.float32(1), jnp.bool_(True), step, batch["source"])
        spied = dataclasses.replace(metrics, loss_sum=Spy(1.0, events, f"read {step}"))
        return dataclasses.replace(state, step=state.step + 1), spied

    run(step_fn=step_fn, config={"steps": 4, "checkpoint_every": 3})
    assert events == [
        "dispatch 0", "dispatch 1", "read 0", "dispatch 2", "read 1", "read 2", "dispatch 3", "read 3"
    ]  # fmt: skip


def test_describes_the_first_batch_once(run, tmp_path):
    described = []

    def describe(batch):
        described.append(int(batch["tokens"][0, 0]))
        return "text"

    run(config={"steps": 3}, describe=describe)
    run(config={"steps": 5}, describe=describe)
    assert described == [1]


def test_too_few_batches_are_an_error(run):
    with pytest.raises(UserError, match="10 steps need as many batches, and the data give 7"):
        run(dataset=grain.MapDataset.source(Rows())[:7])


def test_an_error_in_the_data_is_passed_on(run):
    def fail(index):
        if index == 5:
            raise UserError("rows.npy: damaged")

    with pytest.raises(UserError, match=r"rows\.npy: damaged"):
        run(rows=Rows(on_batch=fail))


@pytest.mark.parametrize("field", ["steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"])
def test_config_is_checked(field):
    with pytest.raises(UserError, match=f"{field} is 0"):
        LoopConfig(**{"steps": 1, "batch_size": 1, field: 0})


def test_accumulation_divides_the_batch():
    with pytest.raises(UserError, match="batch_size=6 is not divisible by accumulation=4"):
        LoopConfig(steps=1, batch_size=6, accumulation=4)
