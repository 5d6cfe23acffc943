import dataclasses
import functools
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
from msm_jax.train.step import StepMetrics, TrainState

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


@functools.cache
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
def run(tmp_path_factory):
    """Trains in a folder that is named, or else new; gives the state and the folder."""
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1], axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def run(folder=None, rows=None, step_fn=None, config=None, **changes):
        folder = folder or tmp_path_factory.mktemp("run")
        state = TrainState(jnp.int32(0), {"history": jnp.uint32(0)}, (jnp.zeros(3),))
        fields = {"steps": 10, "batch_size": ROWS, "accumulation": 2, "log_every": 4, "checkpoint_every": 3}
        arguments = {
            "config": LoopConfig(**fields | (config or {})),
            "step_fn": step_fn or make_step(),
            "state": jax.device_put(state, everywhere),
            "frozen": jax.device_put(jnp.uint32(1), everywhere),
            "dataset": grain.MapDataset.source(rows or Rows()),
            "source_names": ["msm", "replay"],
            "batch_sharding": NamedSharding(mesh, PartitionSpec(None, "data", None)),
            "folder": folder,
            "arrays": folder,
            "saved": lambda: None,
            "identity": "run",
            "run_config": {"steps": 10},
            "flops_per_token": 1.0,
            "peak_flops": 1.0,
            "describe": None,
            "label": "test",
        }
        return train(**arguments | changes), folder

    return run


@pytest.fixture(scope="module")
def whole(run):
    """A run of ten steps that nothing disturbed."""
    return run()


def history(steps):
    value = 0
    for token in range(1, steps + 1):
        value = (value * 31 + token) % 2**32
    return value


def read_lines(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def checkpoints(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def signal_at(batch, number):
    """Signals this process while this batch is made, a few steps ahead of its use; once."""
    sent = []

    def on_batch(index):
        if index == batch and not sent:
            sent.append(index)
            os.kill(os.getpid(), number)

    return Rows(on_batch)


def test_sees_each_batch_once_in_order(whole):
    state, folder = whole
    assert (int(state.step), int(state.params["history"])) == (10, history(10))
    lines = read_lines(folder)
    assert [line["step"] for line in lines] == list(range(10))
    assert [line["loss"] for line in lines] == [float(np.float32(4) * np.float32(1 / t)) / 4 for t in range(1, 11)]
    assert lines[-1]["tokens"] == 10 * ROWS * TOKENS
    assert checkpoints(folder) == [9, 10]
    meta = json.loads((folder / "checkpoints" / "10" / "meta" / "metadata").read_text())
    assert meta["config"] == {"steps": 10}


@pytest.mark.parametrize(
    ("batch", "number", "name", "status"),
    [*[(batch, signal.SIGTERM, "SIGTERM", 143) for batch in (0, 6, 9)], (5, signal.SIGINT, "Ctrl-C", 130)],
)
def test_a_signal_saves_and_the_next_run_resumes_exactly(run, whole, tmp_path, batch, number, name, status):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as interrupted:
        run(tmp_path, signal_at(batch, number))
    assert signal.getsignal(number) is before and interrupted.value.status == status
    done = checkpoints(tmp_path)[-1]
    told = f"{done} of 10 steps are done and saved, and step {done + 1} is next"
    assert str(interrupted.value) == f"test: {name}; {told if done < 10 else 'all 10 steps are done and saved'}"
    resumed, _ = run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole[0])
    assert read_lines(tmp_path) == read_lines(whole[1])


def test_ctrl_c_that_is_ignored_stays_so(run):
    """As of a job in the background of a script: the one who presses it means another."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert int(run(rows=signal_at(3, signal.SIGINT), config={"steps": 5})[0].step) == 5
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_checkpoint_is_due_by_the_clock_too(run, monkeypatch):
    """On a clock by which a step takes three minutes and a half: after every third."""
    clock, saved = [0.0], []
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    step_fn = make_step()

    def slow_step(*arguments):
        clock[0] += 210
        return step_fn(*arguments)

    run(step_fn=slow_step, config={"checkpoint_every": 1000}, saved=lambda: saved.append(clock[0] / 210))
    assert saved == [3, 6, 9, 10]


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


def test_what_is_done_is_not_done_again(run, whole):
    """Outside of the main thread, too, where no signal can be handled."""
    used, states = make_step.__wrapped__(), []
    again = {"step_fn": used, "rows": Rows(on_batch=pytest.fail)}
    thread = threading.Thread(target=lambda: states.append(run(whole[1], **again)[0]))
    thread.start()
    thread.join()
    assert int(states[0].params["history"]) == history(10)
    assert used._cache_size() == 0


def test_the_data_go_on_from_the_saved_position(run, tmp_path):
    described, seen = [], set()

    def describe(batch):
        described.append(int(batch["tokens"][0, 0]))
        return "text"

    run(tmp_path, config={"steps": 3}, describe=describe)
    run(tmp_path, Rows(on_batch=seen.add), config={"steps": 5}, describe=describe)
    assert min(seen) == 3 and described == [1], "the first batch is described, and once"


@pytest.mark.parametrize(
    ("bad", "kept"), [(9, "the checkpoint of step 6 is"), (6, "the checkpoint of step 3 is"), (1, "there is no check")]
)
def test_a_loss_that_is_not_finite_stops_the_run(run, tmp_path, bad, kept):
    """And is never saved, as at step 6 it would be."""
    with pytest.raises(UserError) as raised:
        run(tmp_path, step_fn=make_step(bad_token=bad))
    message = str(raised.value)
    assert f"loss is nan and the gradient norm 1.0 at step {bad - 1} (batch {bad - 1}, rows: msm 3, rep" in message
    assert kept in message and "\n" not in message
    assert [line["step"] for line in read_lines(tmp_path)] == list(range(bad - 1))
    assert checkpoints(tmp_path) == [step for step in (3, 6) if step < bad]
    if bad == 9:
        assert int(run(tmp_path)[0].params["history"]) == history(10)


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


def test_too_few_batches_are_an_error(run):
    with pytest.raises(UserError, match="10 steps need as many batches, and the data give 7"):
        run(dataset=grain.MapDataset.source(Rows())[:7])


def test_an_error_in_the_data_is_passed_on(run):
    def fail(index):
        if index == 5:
            raise UserError("rows.npy: damaged")

    with pytest.raises(UserError, match=r"rows\.npy: damaged"):
        run(rows=Rows(on_batch=fail))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *[({name: 0}, f"{name} is 0") for name in ("steps", "batch_size", "log_every", "keep_checkpoints")],
        ({"batch_size": 6, "accumulation": 4}, "batch_size=6 is not divisible by accumulation=4"),
    ],
)
def test_config_is_checked(fields, message):
    with pytest.raises(UserError, match=message):
        LoopConfig(**{"steps": 1, "batch_size": 1} | fields)
