"""Killed at any moment and started again, a run ends with the same weights and the same losses."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from msm_jax.train.metrics import TIMINGS

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 40


def start(folder, devices=1):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "train" / "kill_worker.py"), str(folder), str(STEPS)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(folder, devices=1):
    worker = start(folder, devices)
    output, _ = worker.communicate(timeout=300)
    assert worker.returncode == 0, output


def stop(folder, signal_number, at_step, delay=0.0, in_save=False):
    """Signals the worker `delay` seconds after it has logged a new step, `at_step` or a later one, and, if so asked,
    has begun to write a checkpoint. Returns its exit status and output."""
    # A step that the worker before has not logged: by then its half-written checkpoints are swept away.
    at_step = max(at_step, last_step(folder) + 1)
    worker = start(folder)
    while worker.poll() is None and (last_step(folder) < at_step or (in_save and not half_written(folder))):
        time.sleep(0.0005)
    time.sleep(delay)
    worker.send_signal(signal_number)
    while signal_number == signal.SIGINT and worker.poll() is None:  # as of somebody who will not wait
        time.sleep(0.002)
        worker.send_signal(signal_number)
    output, _ = worker.communicate(timeout=300)
    return worker.returncode, output


def last_step(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") - 1 if path.exists() else -1


def half_written(folder):
    checkpoints = folder / "checkpoints"
    return checkpoints.exists() and any("tmp" in path.name for path in checkpoints.iterdir())


def read_weights(folder):
    with np.load(folder / "weights.npz") as arrays:
        return dict(arrays)


def read_losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def assert_same_run(folder, whole):
    weights, expected = read_weights(folder), read_weights(whole)
    assert weights.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(weights[name], expected[name], err_msg=name)
    assert read_losses(folder) == read_losses(whole)
    assert [line["step"] for line in read_losses(folder)] == list(range(STEPS))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill") / "whole"
    finish(folder)
    return folder


@pytest.fixture(scope="module")
def killed(whole):
    """A run that was killed at a random moment and then in a save, and is as it was left."""
    folder = whole.parent / "killed"
    moment = random.randrange(1, 12), random.uniform(0, 0.03)
    print("killed at step and seconds", moment)  # pytest shows it with a failure
    status, output = stop(folder, signal.SIGKILL, *moment)
    assert status == -signal.SIGKILL and moment[0] <= last_step(folder) < STEPS - 1, output
    for _ in range(5):  # between the look and the kill a save may end
        status, output = stop(folder, signal.SIGKILL, 0, in_save=True)
        assert status == -signal.SIGKILL, output
        if half_written(folder):
            break
    assert half_written(folder) and last_step(folder) < STEPS - 6
    return folder


def test_killed_then_interrupted_twice_then_terminated_then_resumed(whole, killed):
    folder = shutil.copytree(killed, whole.parent / "terminated")
    status, output = stop(folder, signal.SIGINT, 0, in_save=True)
    assert status == -signal.SIGINT and "Ctrl-C once more drops it" in output
    status, output = stop(folder, signal.SIGTERM, last_step(folder) + 2)
    assert status == 143, output
    assert "SIGTERM" in output and f"of {STEPS} steps are done and saved" in output
    saved = max(int(path.name) for path in (folder / "checkpoints").iterdir())
    assert saved == last_step(folder) + 1 < STEPS

    finish(folder)
    assert_same_run(folder, whole)


def test_resumes_on_another_number_of_devices(whole, killed):
    folder = shutil.copytree(killed, whole.parent / "moved")
    finish(folder, devices=4)
    weights, expected = read_weights(folder), read_weights(whole)
    assert weights.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(weights[name], expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
    losses = [[line["loss"] for line in read_losses(path)] for path in (folder, whole)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_five_times(whole, seed):
    folder = whole.parent / f"seed {seed}"
    draw = random.Random(seed)
    torn = 0
    for kill in range(5):
        status, output = stop(folder, signal.SIGKILL, 1 + 7 * kill + draw.randrange(4), draw.uniform(0, 0.06))
        assert status == -signal.SIGKILL, output
        torn += half_written(folder)
    assert torn, "no kill hit a save; make saves more frequent"
    finish(folder)
    assert_same_run(folder, whole)
