"""A frozen base in 8-bit integers: half the memory of bfloat16, and half of what fsdp sends.

Each output of a matrix has its own scale (symmetric, from the largest weight), as in LLM.int8() (arXiv 2208.07339)
without its outliers: activations stay in the type of the products, so their outliers are no matter. Embedding, head,
norms and biases keep their type.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

PyTree = Any


def quantize(params: PyTree) -> PyTree:
    """The parameters of a base -> those of a model with `int8_base`, where they lie. Frees the matrices that it has
    read, one after the other, so that memory never holds both."""
    layers = {name: _linear(part) if "kernel" in part else part for name, part in params["layers"].items()}
    return params | {"layers": layers}


def _linear(part: dict[str, jax.Array]) -> dict[str, jax.Array]:
    kernel, places = part["kernel"], None
    if isinstance(kernel.sharding, NamedSharding):
        layers, _, outputs = (*kernel.sharding.spec, None, None, None)[:3]
        places = kernel.sharding, NamedSharding(kernel.sharding.mesh, PartitionSpec(layers, outputs))
    integers, scale = jax.block_until_ready(jax.jit(_round, out_shardings=places)(kernel))
    kernel.delete()
    return part | {"kernel": integers, "kernel_scale": scale}


def _round(kernel_LIO: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int8[L, I, O] and float32[L, O] of a stack of matrices."""
    kernel_LIO = kernel_LIO.astype(jnp.float32)
    scale_LO = jnp.max(jnp.abs(kernel_LIO), axis=-2) / 127
    scale_LO = jnp.where(scale_LO > 0, scale_LO, 1.0)
    return jnp.round(kernel_LIO / scale_LO[..., None, :]).astype(jnp.int8), scale_LO
