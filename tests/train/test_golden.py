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
    learning_rate=2e-2, warmup_fraction=0.25, final_fraction=0.1, weight_decay=0.2, beta1=0.8, beta2=0.95, epsilon=1e-5,
    clip_norm=0.5,
)  # fmt: skip
LORA = LoraConfig(rank=3, alpha=6.0, targets=("q", "v", "o", "up", "down"))
LOSSES = {
    "whole model": [
        3.98509, 3.72268, 3.78795, 3.28907, 3.12059, 3.17614, 2.90594, 2.64073, 2.47487, 2.38245,
        2.44686, 2.07215, 2.15981, 2.26267, 1.98111, 1.88397, 1.7987, 1.93232, 1.94889, 2.08043,
    ],
    "adapter": [
        4.10743, 4.05005, 3.85331, 3.47625, 3.54513, 3.54288, 3.19873, 3.01273, 3.06908, 3.04255,
        3.23903, 3.04635, 3.0907, 2.94718, 2.84045, 2.95, 2.74981, 2.92656, 2.95992, 2.80528,
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
