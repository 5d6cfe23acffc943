"""The benchmarks that are made for a GPU run, small, on a CPU; and what they say that a GPU must do is right."""

import json
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks import attention, sample_gpu
from msm_jax.checkpoints.presets import preset
from msm_jax.checkpoints.weights import abstract_params
from msm_jax.models import Model
from msm_jax.parallel import make_mesh


def run(benchmark, monkeypatch, capsys, *options: str) -> list[dict]:
    monkeypatch.setattr(sys, "argv", ["benchmark", *options])
    benchmark.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_samples_of_one_prompt(monkeypatch, capsys):
    sizes = ("--samples=4", "--prompt=40", "--new=12", "--steps=4", "--chunk=64", "--runs=1")
    (found,) = run(sample_gpu, monkeypatch, capsys, "--shape=toy", *sizes)
    assert found["case"] == {
        "samples": 4, "prompt": 40, "new": 12, "steps": 4, "chunk": 64, "temperature": 0.7
    }  # fmt: skip
    for side in sample_gpu.SIDES:
        told = found[side]
        assert told["rows"] == 4 and told["decode_tokens_per_second"] > 0 and told["step_seconds"] > 0
        assert told["tokens_per_second"] > 0 and told["peak_memory_gb"] > 0 and told["part_of_roofline"] is None
    assert found["replicated"]["step_bytes"]["prompt"] == 4 * found["shared"]["step_bytes"]["prompt"]
    assert found["ratio"] > 0


def test_what_a_step_must_read_and_compute():
    """Of Llama 3.1 8B by hand: 8.03 G weights, of which .525 G are the embedding; 128 KiB of each token."""
    model = Model(preset("meta-llama/Llama-3.1-8B"))
    params = abstract_params(model, make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]), "bfloat16")
    case = sample_gpu.Case(samples=300, prompt=3000, new=256, steps=16, chunk=512)
    parts, flops = sample_gpu.step_work(model, params, case, copies=False)
    assert parts["weights"] == pytest.approx(2 * (8.030e9 - 0.525e9), rel=1e-3)
    assert parts["prompt"] == 3000 * 128 * 2**10 and parts["rows"] == 300 * 136.5 * 128 * 2**10
    assert flops == pytest.approx(300 * (2 * 7.505e9 + 4 * 32 * 4096 * 3136.5), rel=1e-3)
    copies, _ = sample_gpu.step_work(model, params, case, copies=True)
    assert copies["all"] - parts["all"] == 299 * parts["prompt"]
    seconds = sample_gpu._roofline(parts["all"], flops, SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3"))
    assert seconds == {"memory": round(parts["all"] / 3350e9, 6), "products": round(flops / 989e12, 6)}
    assert sample_gpu._roofline(1, 1, SimpleNamespace(device_kind="TPU v99")) is None


def test_steps_are_timed_with_all_rows_at_work():
    case = sample_gpu.Case(samples=10, prompt=5, new=16, steps=4, chunk=4)
    blocks = [(3.0, 8), (4.0, 40), (5.0, 40), (6.0, 40), (7.0, 32)]
    assert sample_gpu.times_of(blocks, case) == (2.0, 0.25, 7.0)
    with pytest.raises(SystemExit, match="159 tokens were drawn of 160"):
        sample_gpu.times_of([*blocks[:-1], (7.0, 31)], case)
    with pytest.raises(SystemExit, match="never at work for two blocks"):
        sample_gpu.times_of([(1.0, 40), (2.0, 39), (3.0, 39), (4.0, 39), (5.0, 3)], case)


SMALL = ("--rows=1", "--tokens=128", "--heads=2", "--kv-heads=1", "--head-size=16", "--segments=3", "--runs=1")


def test_kernels_beside_the_plain_one(monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(attention, monkeypatch, capsys, *SMALL)
    found = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0 and found["kernel"] == "blocked" and found["fine"]
    assert 0 < max(found["errors"].values()) < 0.02 and found["seconds"]["best"] > 0


@pytest.mark.parametrize("wrong", [0.9, np.nan])
def test_a_kernel_that_computes_something_else(wrong, monkeypatch, capsys):
    monkeypatch.setattr(
        "msm_jax.models.kernels.flash_attention",
        lambda q, k, v, ids, **_: wrong * (q + k.repeat(2, axis=2) + v.repeat(2, axis=2)),
    )
    with pytest.raises(SystemExit) as ended:
        run(attention, monkeypatch, capsys, *SMALL)
    assert ended.value.code == 1 and not json.loads(capsys.readouterr().out)["fine"]


def test_packed_ids():
    ids = attention.packed_ids(np.random.default_rng(0), 3, 64, 5)
    assert ids.shape == (3, 64) and ids.dtype == np.int32
    for row in ids:
        real = row[row > 0]
        assert (
            np.unique(row).tolist() == [0, 1, 2, 3, 4, 5] and (np.diff(real) >= 0).all() and not row[len(real) :].any()
        )
