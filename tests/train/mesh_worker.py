"""Trains the same tiny models on one device and on meshes of eight: `python tests/train/mesh_worker.py FACTS.json`.

Writes for each model and mesh what happened: losses, weights, where every array lies, compilations.
"""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from msm_jax.models import DecoderConfig, Execution, LoraConfig, Model, quantize
from msm_jax.parallel import batch_sharding, make_mesh, param_shardings
from msm_jax.train.optimizer import OptimizerConfig
from msm_jax.train.step import init_state, make_train_step

STEPS, ACCUMULATION, ROWS, TOKENS = 20, 2, 8, 8
DECODER = DecoderConfig(
    vocab_size=16, num_layers=2, width=16, mlp_width=24, num_heads=4, num_kv_heads=2, head_size=4, dtype="float32"
)
LORA = LoraConfig(rank=2, alpha=2.0, targets=("q", "down"))
# Half a row's logits at once, so that the loss is computed in two chunks.
EXECUTION = Execution(loss_chunk=TOKENS // 2)
MODELS = {
    "full": Model(DECODER, None, EXECUTION),
    "lora": Model(DECODER, LORA, EXECUTION),
    "int8": Model(DECODER, LORA, EXECUTION, int8_base=True),
}
MESHES = {
    "one": {"data": 1, "fsdp": 1, "tensor": 1},
    "fsdp": {"data": 1, "fsdp": -1, "tensor": 2},
    "all": {"data": -1, "fsdp": 2, "tensor": 2},
}
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, epsilon=1e-4)


def random_like(shapes, seed):
    """As at the start of training: norms of one, and weights that keep the size of what they multiply."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        return np.ones_like(noise) if path[-1].key == "scale" else 0.2 * noise

    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_batch(seed):
    """Rows of two segments, with as many targets as the row's number."""
    rng = np.random.default_rng(seed)
    shape = (ACCUMULATION, ROWS, TOKENS)
    segments = np.broadcast_to(np.int32([1, 1, 1, 1, 2, 2, 2, 0]), shape)
    return {
        "tokens": rng.integers(0, 16, shape).astype(np.int32),
        "segments": segments,
        "positions": np.broadcast_to(np.int32([0, 1, 2, 3, 0, 1, 2, 0]), shape),
        "mask": (np.arange(TOKENS) < np.arange(ROWS)[:, None]) & (segments > 0),
        "source": rng.integers(0, 2, shape[:2]).astype(np.int32),
    }


def put_batch(batch, mesh):
    sharding = batch_sharding(mesh, leading=1)
    return {name: jax.device_put(x, sharding) for name, x in batch.items()}


def layout(tree):
    """path -> shape of the whole array, and of the part on each device."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): {
            "whole": leaf.shape,
            "parts": sorted({part.data.shape for part in leaf.addressable_shards}),
        }
        for path, leaf in paths
    }


def run(model, mesh, compilations):
    start = random_like(model.shapes if model.lora is None else model.lora_shapes, 0)
    frozen = None
    if model.lora is not None:
        base = dataclasses.replace(model, int8_base=False)
        frozen = jax.device_put(random_like(base.shapes, 1), param_shardings(base.axes, base.shapes, mesh))
        frozen = quantize(frozen) if model.int8_base else frozen
    state = init_state(model, mesh, 0, start)
    before = {"state": layout(state), "frozen": layout(frozen)}
    step = make_train_step(model, OPTIMIZER, STEPS, mesh)
    losses, counts, deleted = [], [], []
    for number in range(STEPS):
        batch = put_batch(make_batch(number), mesh)
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
    facts = {}
    for mesh_name, shape in MESHES.items():
        mesh = make_mesh(shape, jax.devices()[:1] if mesh_name == "one" else None)
        for name, model in MODELS.items():
            facts[f"{name}/{mesh_name}"] = run(model, mesh, compilations)
    with open(path, "w") as file:
        json.dump(facts, file)


if __name__ == "__main__":
    main(sys.argv[1])
