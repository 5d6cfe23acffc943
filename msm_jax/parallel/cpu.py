"""What makes models faster on a few CPU cores, and nothing else: who runs on TPUs or GPUs need not read it.

`compiler.py` gives training steps the options, `models/decoder.py` holds the angles, and `models/linear.py` merges
adapters and asks for products in float32; the latter two where `Execution.cpu` says so. The sampler's products have
their matrices transposed (`Execution.transposed`). docs/performance.md has what
each was worth.

Shapes: N rows (of all tokens), M inputs, F outputs, R LoRA rank.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp

COMPILER_OPTIONS = {
    # A product at a time, each on all cores, in the order that needs the least memory. XLA's own choice is to run
    # several at once, which holds more and is slower on two cores.
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    # Loops over single numbers use the whole width of AVX-512, of which XLA's own choice is half. Others have no more.
    "xla_cpu_prefer_vector_width": 512,
}
# Products go to Eigen, which shares each among the cores. XLA's own choice is YNNPACK, which is slower, most of all at
# those of attention; here it keeps sums and maxima.
EIGEN = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def compiler_options(dtype: str, tied_head: bool) -> dict[str, bool | int | str]:
    """For programs whose products are of this type."""
    return COMPILER_OPTIONS if uses_matrix_unit(dtype, tied_head) else COMPILER_OPTIONS | EIGEN


@functools.cache
def uses_matrix_unit(dtype: str, tied_head: bool) -> bool:
    """Whether the CPU multiplies numbers of this type in a unit of its own (AMX), which YNNPACK knows and Eigen does
    not. A head of its own is read transposed in the loss: YNNPACK does not take that product, and without Eigen XLA
    has nothing that computes it."""
    flags = pathlib.Path("/proc/cpuinfo")
    return dtype == "bfloat16" and tied_head and flags.exists() and "amx_bf16" in flags.read_text()


def held(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x and y, as arrays that XLA holds. It would compute sines again in each of the loops that read them, and removes
    an `optimization_barrier` before it makes those loops."""
    x, y = jax.lax.map(lambda is_x: jnp.where(is_x, x, y), jnp.array([True, False]))
    return x, y


def product(x: jax.Array, w_MF: jax.Array) -> jax.Array:
    """x [..., M] times W in bfloat16, summed in float32 and rounded once, as are both gradients. XLA uses a CPU's
    matrix unit for products that are asked for in float32, and of matrices that were not transposed before."""
    return _product(x.reshape(-1, x.shape[-1]), w_MF).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _product(x_NM: jax.Array, w_MF: jax.Array) -> jax.Array:
    return _contract(x_NM, w_MF, 1, 0)


def _contract(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    summed = jax.lax.dot_general(x, y, (((x_axis,), (y_axis,)), ((), ())), preferred_element_type=jnp.float32)
    return summed.astype(x.dtype)


def _product_forward(x_NM, w_MF):
    return _product(x_NM, w_MF), (x_NM, w_MF)


def _product_backward(residuals, by_y_NF):
    x_NM, w_MF = residuals
    return _contract(by_y_NF, w_MF, 1, 1), _contract(x_NM, by_y_NF, 0, 0)


_product.defvjp(_product_forward, _product_backward)


def transposed_product(x: jax.Array, w_FM: jax.Array, dtype: jax.typing.DTypeLike | None = None) -> jax.Array:
    """x [..., M] times W transposed, [..., F]: float32 products of few rows are faster with the matrix on the left,
    where XLA reads it as it lies. The barriers keep it from turning the product round."""
    x_MN = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)
    y_FN = jax.lax.dot_general(w_FM, x_MN, (((1,), (0,)), ((), ())), preferred_element_type=dtype)
    return jax.lax.optimization_barrier(y_FN).T.reshape(*x.shape[:-1], -1)


def merging_pays(x_NM: jax.Array, kernel_shape: tuple[int, int]) -> bool:
    """Whether A B is less work than x A and (x A) B."""
    N, (M, F) = x_NM.shape[0], kernel_shape
    return M * F < N * (M + F)


@jax.custom_vjp
def merged_products(x_NM: jax.Array, kernels: list, firsts: list, seconds: list) -> list[jax.Array]:
    """x (W + A B) [N, F] for each W, A and B, in float32, which holds what bfloat16 would round away of A B.

    This takes less memory than x W + x A B: XLA adds the two products anew wherever their sum is read, and keeps both
    for that. No gradient is computed for the kernels: the base is frozen.
    """
    return _forward(x_NM, kernels, firsts, seconds)[0]


def _forward(x_NM, kernels, firsts, seconds):
    merged = [w_MF + a_MR @ b_RF for w_MF, a_MR, b_RF in zip(kernels, firsts, seconds, strict=True)]
    return [x_NM @ merged_MF for merged_MF in merged], (x_NM, merged, kernels, firsts, seconds)


def _backward(residuals, by_ys):
    x_NM, merged, kernels, firsts, seconds = residuals
    by_x_NM = sum(by_y_NF @ merged_MF.T for by_y_NF, merged_MF in zip(by_ys, merged, strict=True))
    # Held as it is: XLA would make its transpose, for B's gradient, of two transposes, which Eigen takes one core for.
    low_NR = jax.lax.optimization_barrier(x_NM @ jnp.concatenate(firsts, axis=1))
    by_low_NR = jnp.concatenate([by_y_NF @ b_RF.T for by_y_NF, b_RF in zip(by_ys, seconds, strict=True)], axis=1)
    by_a = jnp.split(x_NM.T @ by_low_NR, len(by_ys), axis=1)
    by_b = [part_NR.T @ by_y_NF for part_NR, by_y_NF in zip(jnp.split(low_NR, len(by_ys), axis=1), by_ys, strict=True)]
    return by_x_NM, jax.tree.map(jnp.zeros_like, kernels), by_a, by_b


merged_products.defvjp(_forward, _backward)
