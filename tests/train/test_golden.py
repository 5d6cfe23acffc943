"""Twenty steps of a fixed model on fixed data have the losses that they had when they were written down here.

Whoever changes the step on purpose records them anew: the failure shows what was found, in the form of `LOSSES`.
"""

import jax
import numpy as np
import pytest

from msm_jax.models import DecoderConfig, Execution, LoraConfig, Model
from msm_jax.parallel import make_mesh
from msm_jax.train.optimizer import OptimizerConfig
from msm_jax.train.step import init_state, make_train_step

STEPS, ACCUMULATION, ROWS, TOKENS, VOCABULARY = 20, 2, 4, 16, 24
DECODER = DecoderConfig(
    vocab_size=VOCABULARY, num_layers=2, width=16, mlp_width=32, num_heads=4, num_kv_heads=2, head_size=4,
    dtype="float32",
)  # fmt: skip
# With an epsilon that keeps rounding, which differs among processors and versions, from turning updates around.
OPTIMIZER = OptimizerConfig(
    learning_rate=2e-2, warmup_fraction=0.25, final_fraction=0.1, weight_decay=0.2, epsilon=1e-5, clip_norm=0.5
)
LORA = LoraConfig(rank=3, alpha=6.0, targets=("q", "v", "o", "up", "down"))
LOSSES = {
    "whole model": [
        3.98509, 3.72268, 3.78994, 3.30626, 3.12856, 3.17709, 2.92753, 2.689, 2.55171, 2.44819,
        2.48349, 2.1472, 2.29907, 2.36927, 2.14875, 2.04692, 1.96746, 2.15886, 2.15034, 2.22364,
    ],
    "adapter": [
        4.10743, 4.05005, 3.85296, 3.47814, 3.54255, 3.54828, 3.1624, 3.05355, 3.05287, 3.14739,
        3.23241, 3.09742, 3.13927, 2.99987, 2.91593, 2.97791, 2.83982, 3.03563, 3.04302, 2.97511,
    ],
}  # fmt: skip


def draw(shapes, seed):
    """By NumPy's old generator, whose numbers never change."""
    random = np.random.RandomState(seed)

    def leaf(path, shape):
        noise = random.standard_normal(shape.shape).astype(np.float32)
        return 1 + 0.1 * noise if path[-1].key == "scale" else 0.3 * noise

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def batch_of(number):
    """Rows of two texts that count by ones, twos or threes, with prompts that are not trained, and padding."""
    random = np.random.RandomState(number)
    shape = (ACCUMULATION, ROWS, TOKENS)
    second = np.arange(TOKENS) >= random.randint(4, 10, (*shape[:2], 1))
    padding = np.arange(TOKENS) >= random.randint(12, TOKENS + 1, (*shape[:2], 1))
    segments = np.where(padding, 0, 1 + second).astype(np.int32)
    positions = np.where(second, np.cumsum(second, axis=-1) - 1, np.arange(TOKENS)) * ~padding
    starts, strides = random.randint(0, VOCABULARY, (*shape[:2], 2)), random.randint(1, 4, (*shape[:2], 2))
    start, stride = (np.take_along_axis(x, second.astype(int), axis=-1) for x in (starts, strides))
    return {
        "tokens": ((start + stride * positions) % VOCABULARY).astype(np.int32),
        "segments": segments,
        "positions": positions.astype(np.int32),
        "mask": (positions >= 2) & ~padding,
        "source": np.zeros(shape[:2], np.int32),
    }


@pytest.mark.parametrize(("name", "lora"), [("whole model", None), ("adapter", LORA)])
def test_losses_of_twenty_steps(name, lora):
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    model = Model(DECODER, lora, Execution("auto", loss_chunk=8).on(jax.devices()[0].platform))
    base = draw(model.shapes, 0)
    state = init_state(model, mesh, 0, base if lora is None else draw(model.lora_shapes, 1))
    step = make_train_step(model, OPTIMIZER, STEPS, mesh)
    losses = []
    for number in range(STEPS):
        state, metrics = step(state, None if lora is None else base, batch_of(number))
        losses.append(float(metrics.loss_sum / metrics.weight))
    found = ", ".join(f"{loss:.6g}" for loss in losses)
    np.testing.assert_allclose(losses, LOSSES[name], rtol=1e-4, err_msg=found)
