"""Killed at any moment and started again, a run ends with the same weights and the same losses."""

import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import sys
import time

import jax
import numpy as np
import pytest

from msm_jax.data.chat import Example
from msm_jax.data.mixture import Source, batches
from msm_jax.data.rows import PackedRows, write_rows
from msm_jax.errors import Interrupted
from msm_jax.models import DecoderConfig, LoraConfig, Model
from msm_jax.parallel import batch_sharding, make_mesh
from msm_jax.train.loop import LoopConfig, train
from msm_jax.train.metrics import TIMINGS
from msm_jax.train.optimizer import OptimizerConfig
from msm_jax.train.step import init_state, make_train_step

STEPS, BATCH, TOKENS, VOCABULARY = 40, 4, 16, 32


def make_sources(folder: pathlib.Path) -> list[Source]:
    sources = []
    for name, seed, weight in (("msm", 0, 3.0), ("replay", 1, 1.0)):
        draw = np.random.default_rng(seed)
        examples = [
            Example(draw.integers(3, VOCABULARY, n).astype(np.int32), np.arange(n) > 0, False)
            for n in draw.integers(4, TOKENS, 40)
        ]
        if not (folder / name).exists():
            write_rows(folder / name, examples, TOKENS, VOCABULARY)
        sources.append(Source(name, PackedRows(folder / name), weight))
    return sources


def work(folder: pathlib.Path, devices: int) -> None:
    """The process that is killed. Started again it goes on; it leaves `weights.npz` when it is done."""
    jax.config.update("jax_num_cpu_devices", devices)
    with open(output_of(folder), "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    decoder = DecoderConfig(
        vocab_size=VOCABULARY, num_layers=1, width=16, mlp_width=32, num_heads=2, num_kv_heads=2, head_size=8,
        dtype="float32",
    )  # fmt: skip
    model = Model(decoder, LoraConfig(rank=4, alpha=8.0, targets=("q", "up")))
    mesh = make_mesh({"data": -1, "fsdp": min(2, devices), "tensor": 1})
    sources = make_sources(folder.parent)
    try:
        state = train(
            config=LoopConfig(steps=STEPS, batch_size=BATCH, log_every=5, checkpoint_every=3),
            step_fn=make_train_step(model, OptimizerConfig(learning_rate=1e-2), STEPS, mesh),
            state=init_state(model, mesh, seed=0),
            frozen=jax.jit(Model(decoder).init)(jax.random.key(1)),
            dataset=batches(sources, BATCH, seed=0),
            source_names=[source.name for source in sources],
            batch_sharding=batch_sharding(mesh, leading=1),
            folder=folder,
            arrays=folder,
            saved=lambda: None,
            identity="kill test",
            run_config={},
            flops_per_token=1.0,
            peak_flops=None,
            describe=None,
            label="kill test",
        )
    except Interrupted as interrupted:
        print(interrupted, flush=True)
        sys.exit(interrupted.status)
    leaves = jax.tree.leaves_with_path(jax.device_get(state))
    np.savez(folder / "weights.npz", **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})


# Forked by a process that has the modules, but has not asked JAX for devices and has no threads yet.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["msm_jax.train.loop", "msm_jax.train.step", "msm_jax.data.mixture", "msm_jax.data.chat"])


def output_of(folder):
    return folder.with_suffix(".txt")


def start(folder, devices=1):
    worker = forks.Process(target=work, args=(folder, devices))
    worker.start()
    return worker


def wait(worker, folder):
    worker.join(300)
    return worker.exitcode, output_of(folder).read_text()


def finish(folder, devices=1):
    status, output = wait(start(folder, devices), folder)
    assert status == 0, output


def stop(folder, signal_number, at_step, delay=0.0, in_save=False):
    """Signals the worker `delay` seconds after it has logged a new step, `at_step` or a later one, and, if so asked,
    has begun to write a checkpoint. Returns its exit status and output."""
    # A step that the worker before has not logged: by then its half-written checkpoints are swept away.
    at_step = max(at_step, last_step(folder) + 1)
    worker = start(folder)
    while worker.is_alive() and (last_step(folder) < at_step or (in_save and not half_written(folder))):
        time.sleep(0.001)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):  # it may have ended just now
        os.kill(worker.pid, signal_number)
        while signal_number == signal.SIGINT and worker.is_alive():  # as of somebody who will not wait
            time.sleep(0.002)
            os.kill(worker.pid, signal_number)
    return wait(worker, folder)


def last_step(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") - 1 if path.exists() else -1


def half_written(folder):
    checkpoints = folder / "checkpoints"
    return checkpoints.exists() and any("tmp" in path.name for path in checkpoints.iterdir())


def read_losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def assert_same_run(folder, whole, **tolerances):
    """Bit for bit, unless tolerances are given."""
    with np.load(folder / "weights.npz") as weights, np.load(whole / "weights.npz") as expected:
        assert weights.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(weights[name], expected[name], **{"rtol": 0} | tolerances, err_msg=name)
    losses, expected = read_losses(folder), read_losses(whole)
    assert [line["step"] for line in losses] == list(range(STEPS))
    if tolerances:
        np.testing.assert_allclose(*[[line["loss"] for line in lines] for lines in (losses, expected)], rtol=1e-4)
    else:
        assert losses == expected


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill") / "whole"
    with pytest.MonkeyPatch.context() as patch:  # the process that forks takes its modules from here
        patch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parents[2]))
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
    assert_same_run(folder, whole, rtol=1e-3, atol=1e-5)
