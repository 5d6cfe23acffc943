import json
import types

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from msm_jax.storage import progress
from msm_jax.train import metrics as metrics_lib
from msm_jax.train.metrics import TIMINGS, Clock, MetricsLog
from msm_jax.train.step import StepMetrics


@pytest.fixture
def time(monkeypatch):
    fake = types.SimpleNamespace(now=100.0, perf_counter=lambda: fake.now, monotonic=lambda: fake.now)
    monkeypatch.setattr(metrics_lib, "time", fake)
    monkeypatch.setattr(progress, "time", fake)
    return fake


def make_log(folder, **changes):
    fields = {"sources": ["msm", "replay"], "start": 0, "steps": 20, "tokens": 0, "log_every": 2, "label": "msm seed 0"}
    fields |= {"flops_per_token": 10.0, "peak_flops": 1000.0, "clock": Clock()}
    return MetricsLog(folder=folder, **fields | changes)


def make_metrics(losses=(2.0, 2.0), weights=(1, 1), tokens=100):
    losses, weights = np.array(losses, np.float32), np.array(weights, np.float32)
    return StepMetrics(
        loss_sum=(losses * weights).sum(),
        weight=weights.sum(),
        tokens=np.float32(tokens),
        row_loss_sum=(losses * weights)[None],
        row_weight=weights[None],
        source=np.arange(len(losses))[None],
        grad_norm=np.float32(0.5),
        learning_rate=np.float32(1e-3),
        finite=np.True_,
    )


def read_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_board(folder):
    board = EventAccumulator(str(folder))
    board.Reload()
    return board, {
        name: [(event.step, event.value) for event in board.Scalars(name)] for name in board.Tags()["scalars"]
    }


def test_a_line_per_step_and_a_point_per_log_step(tmp_path, time):
    log = make_log(tmp_path)
    log.text("batch", "a [b] c", 0)
    log.record(0, make_metrics([1.0, 2.0], [30, 10]))
    time.now += 5.0
    log.record(1, make_metrics([4.0, 2.0], [10, 0]))
    log.close()
    first, second = read_lines(tmp_path)
    assert first == {
        "step": 0, "loss": 1.25, "loss/msm": 1.0, "loss/replay": 2.0, "learning_rate": pytest.approx(1e-3),
        "grad_norm": 0.5, "trained_tokens": 40, "tokens": 100,
    }  # fmt: skip
    assert (second["loss"], second["loss/replay"], second["tokens"]) == (4.0, None, 200)
    board, scalars = read_board(tmp_path)
    assert scalars["loss"] == [(1, pytest.approx((30 + 20 + 40) / 50))]
    assert scalars["loss/msm"] == [(1, pytest.approx(70 / 40))]
    assert scalars["loss/replay"] == [(1, 2.0)]
    assert scalars["state/tokens"] == [(1, 200.0)] and "speed/goodput" in scalars
    [event] = board.Tensors("batch/text_summary")
    assert b"a [b] c" in event.tensor_proto.string_val[0]


@pytest.mark.parametrize("peak", [1000.0, None])
def test_rates_are_wall_time_without_the_first_step(tmp_path, time, peak):
    log = make_log(tmp_path, steps=5, peak_flops=peak)
    # The first compiles.
    for step, (seconds, tokens) in enumerate([(60.0, 100), (4.0, 200), (5.0, 300), (5.0, 300), (1.0, 100)]):
        time.now += seconds
        log.record(step, make_metrics(tokens=tokens))
    log.close()
    lines = read_lines(tmp_path)
    assert [line.get("tokens_per_second") for line in lines[:4]] == [None, 50.0, None, 60.0]
    assert [line.get("step_seconds") for line in lines[:4]] == [None, 4.0, None, 5.0]
    assert lines[3].get("mfu") == (pytest.approx(60.0 * 10.0 / 1000.0) if peak else None)
    assert lines[3]["memory_bytes"] > 1e6
    assert "goodput" in lines[4]  # the last step is always a log point


def test_goodput_is_the_share_that_was_not_lost(time):
    clock = Clock()
    with pytest.raises(ValueError), clock.lost():
        time.now += 30.0
        raise ValueError
    time.now += 90.0
    assert clock.goodput() == pytest.approx(0.75)


@pytest.mark.parametrize("tail", ["", '{"step": 4, "loss": 1.', '{"step": 4, "loss": 1.5}', "garbage\n", "[]\n"])
def test_resume_continues_the_file_and_the_curves(tmp_path, tail):
    def run(folder, start, stop):
        log = make_log(folder, start=start, tokens=100 * start)
        for step in range(start, stop):
            log.record(step, make_metrics([step, 1.0], [30, 10]))
        log.close()

    run(tmp_path / "whole", 0, 8)
    run(tmp_path / "torn", 0, 6)
    with (tmp_path / "torn" / "metrics.jsonl").open("a") as file:
        file.write(tail)
    run(tmp_path / "torn", 4, 8)

    def untimed(folder):
        return [{key: value for key, value in line.items() if key not in TIMINGS} for line in read_lines(folder)]

    assert untimed(tmp_path / "torn") == untimed(tmp_path / "whole")
    assert read_board(tmp_path / "torn")[1]["loss"] == read_board(tmp_path / "whole")[1]["loss"]


@pytest.mark.parametrize(
    ("steps", "recorded", "seconds", "told"),
    [(40, 40, 1.5, (8, 16, 24, 32, 40)), (10_000, 300, 1.0, (61, 122, 183, 244))],
)
def test_without_a_terminal_a_line_with_each_tenth_or_minute(tmp_path, time, capsys, steps, recorded, seconds, told):
    log = make_log(tmp_path, steps=steps, log_every=4)
    for step in range(recorded):
        time.now += seconds
        log.record(step, make_metrics())
    log.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"msm seed 0: step {n}/{steps}" for n in told]
    if steps == 40:
        assert lines[0] == "msm seed 0: step 8/40, loss 2.000, 67 tokens/s, 48 s left"
        assert lines[-1] == "msm seed 0: step 40/40, loss 2.000, 67 tokens/s"


def test_on_a_terminal_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("msm_jax.storage.progress._SECONDS_BEFORE_BAR", 0)
    log = make_log(tmp_path, start=1, steps=3)
    for step in (1, 2):
        log.record(step, make_metrics(weights=[0, 0]))
    log.close()
    bar = capsys.readouterr().err
    assert "msm seed 0: 100%" in bar and "3/3" in bar and "no trained token" in bar
