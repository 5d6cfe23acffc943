"""Linear layers, the low-rank adapters beside them, and their matrices in 8-bit integers.

Shapes: N rows (of all tokens), M inputs, F outputs, R LoRA rank, X adapters; L layers, I inputs and O outputs of a
stack.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec

from msm_jax.errors import UserError
from msm_jax.parallel import cpu
from msm_jax.parallel.sharding import constrain

if TYPE_CHECKING:
    from msm_jax.models.model import Model

PyTree = Any
LORA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685): y = x W + (alpha / rank) x A B, with A random, B zero, both float32.

    Raises: UserError if there is no such target, or no rank.
    """

    rank: int = 64
    alpha: float = 128.0
    targets: tuple[str, ...] = LORA_TARGETS

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple(self.targets))  # of a list, as JSON has it
        unknown = set(self.targets) - set(LORA_TARGETS)
        if unknown:
            raise UserError(f"lora.targets {', '.join(sorted(unknown))}: choose from {', '.join(LORA_TARGETS)}")
        if self.rank < 1:
            raise UserError(f"lora.rank={self.rank}; it must be 1 or more")


class LoraParam(nnx.Param):
    """A parameter of an adapter, so that the adapter splits off as a tree of its own."""


class Linear(nnx.Module):
    """x W, plus a bias and the adapter's x A B where `model` has them for the layer of this name. `axes` are the
    logical names of W's axes. Of an 8-bit base, W has a scale for each output (`quantize` makes both)."""

    def __init__(
        self,
        name: str,
        sizes: tuple[int, int],
        axes: tuple[str, str],
        model: "Model",
        rngs: nnx.Rngs,
        bias: bool = False,
    ):
        size_in, size_out = sizes
        int8 = model.int8_base and name in LORA_TARGETS
        kernel = nnx.initializers.lecun_normal()(rngs.params(), sizes, jnp.float32)
        self.kernel = nnx.Param(kernel.astype(jnp.int8) if int8 else kernel, axes=axes)
        self.kernel_scale = nnx.Param(jnp.ones(size_out, jnp.float32), axes=axes[1:]) if int8 else None
        self.gathered_axes = tuple(None if axis == "embed" else axis for axis in axes)
        self.bias = nnx.Param(jnp.zeros(size_out, jnp.float32), axes=axes[1:]) if bias else None
        self.dtype = model.config.dtype
        self.scale = None
        lora = model.lora
        if lora is not None and name in lora.targets:
            bound = size_in**-0.5
            a = jax.random.uniform(rngs.lora(), (size_in, lora.rank), jnp.float32, -bound, bound)
            wide_in, wide_out = (axis if axis == "embed" else "wide" for axis in axes)
            self.lora_a = LoraParam(a, axes=(wide_in, "rank"))
            self.lora_b = LoraParam(jnp.zeros((lora.rank, size_out), jnp.float32), axes=("rank", wide_out))
            self.scale = lora.alpha / lora.rank
        adapted = self.scale is not None
        self.may_merge = model.execution.cpu and adapted and self.dtype == "float32" and not int8
        matrix_unit = model.execution.cpu and cpu.uses_matrix_unit(self.dtype, model.config.tied_head)
        self.product = cpu.product if matrix_unit else jnp.matmul
        self.transposed = model.execution.transposed

    def __call__(self, x: jax.Array, lora_mask: jax.Array | None = None) -> jax.Array:
        return project(x, self, lora_mask=lora_mask)[0]

    def factors(self) -> tuple[jax.Array, jax.Array]:
        """A [M, R] and B [R, F], with the scale in B."""
        return self.lora_a[...].astype(self.dtype), (self.scale * self.lora_b[...]).astype(self.dtype)

    def base(self, x: jax.Array) -> jax.Array:
        """x W [..., F], without the adapter."""
        kernel = self.kernel[...]
        if self.transposed:
            return cpu.transposed_product(x, kernel)
        if self.kernel_scale is None:
            return self.product(x, kernel.astype(self.dtype))
        # Gathered over fsdp as it is stored, or the partitioner would send twice the bytes.
        y = self.product(x, constrain(kernel, self.gathered_axes).astype(self.dtype))
        return (y * self.kernel_scale[...]).astype(self.dtype)


def project(x: jax.Array, *linears: Linear, lora_mask: jax.Array | None = None) -> list[jax.Array]:
    """x [..., M] through each of the layers: [..., F]. The first matrices of their adapters are one product: a matrix
    of one adapter's rank is thinner than what processors multiply at their pace.

    Rows may have adapters of their own. Either A is [X, M, R] and B [X, R, F]: each is for as many of the rows, in
    order. Or several adapters lie side by side as one of a larger rank, and `lora_mask`, bool[N, R], tells which
    columns of x A each row keeps.
    """
    # As one matrix of rows: gradients that are summed over two axes make XLA transpose x and y on a CPU.
    x_NM = x.reshape(-1, x.shape[-1])
    if all(linear.may_merge and cpu.merging_pays(x_NM, linear.kernel.shape) for linear in linears):
        kernels, factors = [linear.kernel[...] for linear in linears], [linear.factors() for linear in linears]
        outs = cpu.merged_products(x_NM, kernels, *map(list, zip(*factors, strict=True)))
        outs = [y_NF.reshape(*x.shape[:-1], -1) for y_NF in outs]
    else:
        outs = [linear.base(x) for linear in linears]
        places = [place for place, linear in enumerate(linears) if linear.scale is not None]
        if places and linears[places[0]].lora_a.ndim == 3:
            for place in places:
                a_XMR, b_XRF = linears[place].factors()
                low_XNR = jnp.einsum("xnm,xmr->xnr", x_NM.reshape(len(a_XMR), -1, x.shape[-1]), a_XMR)
                outs[place] += jnp.einsum("xnr,xrf->xnf", low_XNR, b_XRF).reshape(outs[place].shape)
        elif places and lora_mask is not None:  # A is wide as it is, and is read in every step of sampling: no copy
            for place in places:
                a_MR, b_RF = linears[place].factors()
                low_NR = jnp.where(lora_mask, linears[place].product(x_NM, a_MR), 0)
                outs[place] += linears[place].product(low_NR, b_RF).reshape(outs[place].shape)
        elif places:
            firsts, seconds = zip(*(linears[place].factors() for place in places), strict=True)
            low_NR = checkpoint_name(linears[0].product(x_NM, jnp.concatenate(firsts, axis=1)), "low")
            for place, part_NR, b_RF in zip(places, jnp.split(low_NR, len(places), axis=1), seconds, strict=True):
                outs[place] += linears[place].product(part_NR, b_RF).reshape(outs[place].shape)
    for place, linear in enumerate(linears):
        if linear.bias is not None:
            outs[place] += linear.bias[...].astype(linear.dtype)
    return outs


def quantize(params: PyTree) -> PyTree:
    """The parameters of a base -> those of a model with `int8_base`, where they lie: half the memory of bfloat16, and
    half of what fsdp sends. Frees the matrices that it has read, one by one, so that memory never holds both.

    Each output of a matrix has its own scale (symmetric, from the largest weight), as in LLM.int8() (arXiv 2208.07339)
    without its outliers: activations stay in the type of the products, so their outliers are no matter. Embedding,
    head, norms and biases keep their type.
    """
    layers = {name: _quantized(part) if "kernel" in part else part for name, part in params["layers"].items()}
    return params | {"layers": layers}


def _quantized(part: dict[str, jax.Array]) -> dict[str, jax.Array]:
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
