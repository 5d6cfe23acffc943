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
    """FLOP/s of all devices of all hosts together: in bf16 of a chip's data sheet, if it is known, else measured."""
    chip = chip_of(jax.devices()[0].device_kind)
    return chip.peak * len(jax.devices()) if chip and dtype == "bfloat16" else measured_flops(dtype)


@functools.cache
def measured_flops(dtype: str) -> float:
    """FLOP/s of all devices of all hosts together, of a product of two large matrices, the best of a few."""
    platform = jax.devices()[0].platform
    measured = _measure_matmul(dtype, platform, size=2048 if platform == "cpu" else 8192)
    # Virtual CPU devices share the same cores.
    return measured * (jax.process_count() if platform == "cpu" else len(jax.devices()))


def _measure_matmul(dtype: str, platform: str, size: int, repeats: int = 4) -> float:
    x = jnp.ones((size, size), dtype)
    # With the options of a training step, or XLA might choose a slower product than the step has.
    product = jax.jit(lambda x: x @ x, compiler_options=compiler_options(platform))
    product(x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
