"""Eight devices, in any mesh, train as one does. All of it happens in one process of eight virtual CPU devices, which
runs this file: `python tests/train/test_mesh.py FACTS.json`."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm_jax.models import DecoderConfig, Execution, LoraConfig, Model, quantize
from msm_jax.parallel import batch_sharding, make_mesh, param_shardings
from msm_jax.train.optimizer import OptimizerConfig
from msm_jax.train.step import init_state, make_train_step

ROOT = pathlib.Path(__file__).parents[2]
STEPS, ACCUMULATION, ROWS, TOKENS = 8, 2, 8, 8
DECODER = DecoderConfig(
    vocab_size=16, num_layers=2, width=16, mlp_width=24, num_heads=4, num_kv_heads=2, head_size=4, dtype="float32"
)
LORA = LoraConfig(rank=2, alpha=2.0, targets=("q", "down"))
# Half a row's logits at once, so that the loss is computed in two chunks.
EXECUTION = Execution(loss_chunk=TOKENS // 2)
MODELS = {
    "full": Model(DECODER, None, EXECUTION),
    "int8": Model(DECODER, LORA, EXECUTION, int8_base=True),
}
MESHES = {
    "one": {"data": 1, "fsdp": 1, "tensor": 1},
    "all": {"data": -1, "fsdp": 2, "tensor": 2},
    "fsdp": {"data": 1, "fsdp": -1, "tensor": 2},
}
RUNS = [f"{model}/{mesh}" for model in MODELS for mesh in ("one", "all")] + ["full/fsdp"]
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, epsilon=1e-4)


def random_like(shapes, seed):
    """As at the start of training: norms of one, and weights that keep the size of what they multiply."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        return np.ones_like(noise) if path[-1].key == "scale" else 0.2 * noise

    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_batch(seed, mesh):
    """Rows of two segments, with as many targets as the row's number."""
    rng = np.random.default_rng(seed)
    shape = (ACCUMULATION, ROWS, TOKENS)
    segments = np.broadcast_to(np.int32([1, 1, 1, 1, 2, 2, 2, 0]), shape)
    batch = {
        "tokens": rng.integers(0, 16, shape).astype(np.int32),
        "segments": segments,
        "positions": np.broadcast_to(np.int32([0, 1, 2, 3, 0, 1, 2, 0]), shape),
        "mask": (np.arange(TOKENS) < np.arange(ROWS)[:, None]) & (segments > 0),
        "source": rng.integers(0, 2, shape[:2]).astype(np.int32),
    }
    return jax.device_put(batch, batch_sharding(mesh, leading=1))


def layout(tree):
    """path -> shape of the whole array, and of the part on each device."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): {
            "whole": leaf.shape,
            "parts": sorted({part.data.shape for part in leaf.addressable_shards}),
        }
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def run(model, mesh, compilations):
    """What happened: losses, weights, where every array lies, compilations."""
    start = random_like(model.shapes if model.lora is None else model.lora_shapes, 0)
    frozen = None
    if model.lora is not None:
        base = dataclasses.replace(model, int8_base=False)
        frozen = jax.device_put(random_like(base.shapes, 1), param_shardings(base.axes, base.shapes, mesh))
        frozen = quantize(frozen)
    state = init_state(model, mesh, 0, start)
    before = {"state": layout(state), "frozen": layout(frozen)}
    step = make_train_step(model, OPTIMIZER, STEPS, mesh)
    losses, counts, deleted = [], [], []
    for number in range(STEPS):
        batch = make_batch(number, mesh)
        old, started = state, len(compilations)
        state, metrics = step(state, frozen, batch)
        counts.append(len(compilations) - started)
        deleted.append(all(leaf.is_deleted() for leaf in jax.tree.leaves(old)))
        losses.append([float(x) for x in (metrics.loss_sum, metrics.weight, metrics.grad_norm)])
    weights = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(state.params))])
    return {
        "mesh": dict(mesh.shape),
        "losses": losses,
        "weights": weights.tolist(),
        "compilations": counts,
        "deleted": deleted,
        "before": before,
        "after": {"state": layout(state), "frozen": layout(frozen)},
    }


def main(path):
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compilations.append(event) if event.endswith("backend_compile_duration") else None
    )
    meshes = {name: make_mesh(shape, jax.devices()[:1] if name == "one" else None) for name, shape in MESHES.items()}
    named = [(name, *name.split("/")) for name in RUNS]
    facts = {name: run(MODELS[model], meshes[mesh], compilations) for name, model, mesh in named}
    pathlib.Path(path).write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """What `main` found, and what XLA said meanwhile."""
    path = tmp_path_factory.mktemp("mesh") / "facts.json"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__, path], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stderr


@pytest.fixture(scope="module")
def facts(worker):
    return worker[0]


def test_minus_one_takes_the_remaining_devices(facts):
    assert facts["full/one"]["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1}
    assert facts["full/fsdp"]["mesh"] == {"data": 1, "fsdp": 4, "tensor": 2}
    assert facts["full/all"]["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_weights_are_those_of_one_device_and_a_step_compiles_once(facts, name):
    one, many = facts[f"{name.split('/')[0]}/one"], facts[name]
    assert len(many["losses"]) == STEPS and many["losses"][0] != many["losses"][-1]
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=1e-5)
    np.testing.assert_allclose(many["weights"], one["weights"], atol=5e-6)
    assert many["compilations"] == [1] + [0] * (STEPS - 1)
    assert many["before"] == many["after"], "everything stays in its place"
    assert all(many["deleted"]), "a state that is not donated is held twice"


@pytest.mark.parametrize("model", MODELS)
def test_weights_and_moments_are_split(facts, model):
    """Every array but counters and norms; of each device's part the size says over how many devices."""
    layouts = facts[f"{model}/all"]["after"]
    arrays = {**layouts["state"], **{f"frozen/{path}": array for path, array in layouts["frozen"].items()}}
    assert any(path.startswith("frozen/") for path in arrays) == (model != "full")
    for path, array in arrays.items():
        ways = {math.prod(array["whole"]) // math.prod(part) for part in array["parts"]}
        if path.endswith(("/scale", "step", "/count")):
            expected = 1
        elif path.endswith(("/q/lora_a", "/down/lora_b")):
            expected = 2  # embed over fsdp; the rank is whole
        elif path.endswith("/kernel_scale"):
            expected = 2  # over fsdp or tensor, as its outputs are
        else:
            expected = 4  # fsdp x tensor; data holds copies
        assert ways == {expected}, path
    assert arrays["params/layers/down/" + ("kernel" if model == "full" else "lora_a")]["parts"] == (
        [[2, 12, 8]] if model == "full" else [[2, 6, 2]]
    )
    # Moments lie where their parameters lie.
    params = {path.removeprefix("params/"): array for path, array in arrays.items() if path.startswith("params/")}
    for moment in ("mu", "nu"):
        assert params == {p.split(f"/{moment}/")[1]: array for p, array in arrays.items() if f"/{moment}/" in p}


def test_no_activation_is_replicated_on_all_devices(worker):
    assert "rematerialization" not in worker[1]


if __name__ == "__main__":
    main(sys.argv[1])
