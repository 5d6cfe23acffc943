"""A workdir on gs://: the real gcsfs, Orbax and TensorStore against a small server that stands for the store."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest

import msm_jax
from msm_jax.checkpoints import weights
from msm_jax.errors import UserError
from msm_jax.storage.mirror import Mirror
from msm_jax.train.metrics import TIMINGS
from tests.gcs_server import Storage

pytestmark = pytest.mark.slow  # two minutes of processes that wait for a store

ROOT = pathlib.Path(__file__).parents[2]
LAST = "manifest.json"
STEPS = 30
OPTIONS = ["--config.arms=aft", "--config.eval.samples=0", "--config.eval.pairs=1", f"--config.pretrain.steps={STEPS}"]


@pytest.fixture(scope="module")
def bucket():
    """gs://bucket, for this process and those that it starts."""
    storage = Storage()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", storage.address)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", storage.address)
        patch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")  # nobody is to look for credentials
        yield "gs://bucket"
    fsspec.get_filesystem_class("gs").clear_instance_cache()
    storage.stop()


def start(workdir, cache):
    command = [sys.executable, "-m", "msm_jax.launch", "--config=tests/tiny.py", f"--workdir={workdir}", *OPTIONS]
    environment = os.environ | {"MSM_JAX_CACHE": str(cache), "JAX_NUM_CPU_DEVICES": "2"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def until_step(folder, step):
    deadline = time.monotonic() + 120
    while not any(path.read_bytes().count(b"\n") > step for path in folder.glob("**/stages/pretrain-*/metrics.jsonl")):
        assert time.monotonic() < deadline, "no step in two minutes"
        time.sleep(0.01)


def losses(text):
    lines = [json.loads(line) for line in text.splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


@pytest.fixture(scope="module")
def runs(bucket, tmp_path_factory):
    """A run on a disk; and one in the bucket that a machine began, which got SIGTERM, and another finished."""
    folder = tmp_path_factory.mktemp("gcs")
    status, _, error = finish(start(folder / "disk", folder / "none"))
    assert status == 0, error
    first = start(f"{bucket}/run", folder / "first")
    until_step(folder / "first", 5)
    first.send_signal(signal.SIGTERM)
    stopped = finish(first)
    return folder, stopped, finish(start(f"{bucket}/run", folder / "second"))


def test_another_machine_goes_on_where_the_first_one_stopped(runs):
    _, stopped, (status, out, error) = runs
    assert stopped[0] == 143 and "steps are done and saved" in stopped[2], stopped
    assert status == 0, error
    assert "8 of 16 stages are done already" in out and "report: gs://bucket/run/report/report.html" in out


def test_all_is_in_the_bucket_and_the_same_as_on_a_disk(bucket, runs):
    folder, *_ = runs
    store = fsspec.filesystem("gs")
    there = {path.removeprefix("bucket/run/") for path in store.find("bucket/run")}
    disk = {path.relative_to(folder / "disk").as_posix() for path in (folder / "disk").rglob("*") if path.is_file()}

    def outputs(names):
        kinds = ("manifest", "metrics", "model", "corpus", "answers", "report", "config")
        return {
            name for name in names if name.endswith((".json", ".jsonl", ".html")) and pathlib.Path(name).stem in kinds
        }

    assert outputs(there) == outputs(disk)
    assert any("/final/" in name for name in there) and not any("/checkpoints/" in name for name in there)
    for name in outputs(disk):
        if name.endswith("metrics.jsonl"):
            found = store.cat(f"bucket/run/{name}").decode()
            assert losses(found) == losses((folder / "disk" / name).read_text())


def test_a_model_is_loaded_from_the_bucket(bucket, runs):
    folder, *_ = runs
    [local] = (folder / "disk").glob("stages/aft-aft-*")
    tokens = np.arange(20, dtype=np.int32)[None] % 200
    expected = msm_jax.load(local).logits(tokens)
    np.testing.assert_array_equal(msm_jax.load(f"{bucket}/run/stages/{local.name}").logits(tokens), expected)
    # The copy of the workdir knows where the weights are.
    [copy] = (folder / "second").glob("*/stages/aft-aft-*")
    assert not (copy / "final").exists()
    np.testing.assert_array_equal(msm_jax.load(copy).logits(tokens), expected)
    names = [
        weights.fingerprint_of(weights.open_model(path)) for path in (copy, f"{bucket}/run/stages/{local.name}", local)
    ]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("cache", ["second", "third"])  # one that takes the stage for done, and an empty one
def test_a_stage_without_a_manifest_takes_the_weights_that_are_there(bucket, runs, cache):
    folder, *_ = runs
    store = fsspec.filesystem("gs")
    store.invalidate_cache()
    [manifest] = store.glob(f"bucket/run/stages/pretrain-*/{LAST}")
    weights = generations(store, manifest)
    store.rm(manifest)
    status, out, error = finish(start(f"{bucket}/run", folder / cache))
    assert status == 0, error
    assert "15 of 16 stages are done already" in out
    store.invalidate_cache()
    assert store.exists(manifest) and len(weights) > 0
    assert generations(store, manifest) == weights


def generations(store, manifest):
    found = store.find(manifest.replace(LAST, "final"), detail=True)
    return {path: about["generation"] for path, about in found.items()}


def test_a_bucket_that_is_not_there(bucket, tmp_path):
    mirror = Mirror("gs://nobody/run", tmp_path)
    (mirror.local / "config.json").write_text("{}")
    with pytest.raises(UserError, match="gs://nobody/run: .*; the same command goes on"):
        mirror.send(mirror.local / "config.json")
