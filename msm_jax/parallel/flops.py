"""How much work a training step is, and how fast the device could do it."""

import functools
import time

import jax
import jax.numpy as jnp

from msm_jax.parallel.chips import chip_of
from msm_jax.parallel.compiler import compiler_options


def train_flops_per_token(
    *, matmul_parameters: int, adapter_parameters: int | None, num_layers: int, attention_width: int, row_length: int
) -> float:
    """Model FLOPs of one training token, forward and backward, without recomputation.

    A full step costs 6 per matrix parameter (2 forward, 2 for each of the two gradients). With a frozen base its
    weight gradients fall away: 4 per base and 6 per adapter parameter. Causal attention adds, per layer, 6 times
    row_length * attention_width (the two products, halved by causality), as in appendix B of arXiv 2204.02311.

    Args:
      matmul_parameters: of the base, without the embedding table (the head counts, tied or not).
      adapter_parameters: None if the base itself is trained.
      attention_width: heads * head size.
      row_length: tokens; packing lowers the true attention cost, so this is an upper bound.
    """
    if adapter_parameters is None:
        linear = 6 * matmul_parameters
    else:
        linear = 4 * matmul_parameters + 6 * adapter_parameters
    return float(linear + 6 * num_layers * row_length * attention_width)


@functools.cache
def peak_flops(dtype: str = "bfloat16") -> float:
    """FLOP/s of all devices of all hosts together: the bf16 peak of a chip known by name, else measured in `dtype`."""
    device = jax.devices()[0]
    chip = chip_of(device.device_kind)
    if chip:
        return chip.peak * len(jax.devices())
    measured = _measure_matmul(dtype)
    # Virtual CPU devices share the same cores; other unnamed devices do not.
    return measured if device.platform == "cpu" else measured * len(jax.devices())


def _measure_matmul(dtype: str, size: int = 2048, repeats: int = 4) -> float:
    x = jnp.ones((size, size), dtype)
    # With the options of a training step, or XLA might choose a slower product than the step has.
    product = jax.jit(lambda x: x @ x, compiler_options=compiler_options(jax.devices()[0].platform))
    product(x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
