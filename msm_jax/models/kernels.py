"""Attention kernels that hold no logits: JAX's splash attention on TPUs, cuDNN's on NVIDIA GPUs, or JAX's Triton kernel
where cuDNN cannot, and blocks of queries elsewhere.

Rows attend to themselves here (training, scoring, prefill); the order of a row is that of its positions, so a query
sees the keys of its own segment that stand before it or at its place.

Shapes: B rows, T tokens, H query heads, K key heads (H = K * G), D head size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from msm_jax.errors import UserError
from msm_jax.models.blocked_attention import blocked_attention
from msm_jax.models.cudnn_attention import CAPABILITY, cudnn_attention
from msm_jax.parallel.sharding import partition_spec

KERNELS = ("reference", "blocked", "splash", "cudnn", "triton")
# A block of the softmax's statistics is a whole row of a TPU's vector registers.
_TPU_LANES = 128


def kernel_of(platform: str, capability: str | None = None) -> str:
    """The fastest kernel for a platform, as JAX names it ("tpu", "gpu", "cuda", "cpu").

    Args:
      capability: of an NVIDIA GPU, as `jax.Device.compute_capability`; none: not known.
    """
    if platform in ("gpu", "cuda"):
        return "cudnn" if takes_cudnn(capability) else "triton"
    return {"tpu": "splash"}.get(platform, "blocked")


def takes_cudnn(capability: str | None) -> bool:
    """Whether cuDNN computes attention of packed rows on GPUs of this capability ("9.0"; an AMD GPU's is "gfx90a")."""
    try:
        return float(capability or 0) >= CAPABILITY
    except ValueError:
        return False


def check_platform(kernel: str, platform: str, capability: str | None = None) -> None:
    """Raises: UserError if the kernel is made for other devices than those of `platform`, as JAX names it."""
    gpu = kernel in ("cudnn", "triton")
    if kernel == "splash" and platform != "tpu" or gpu and platform not in ("gpu", "cuda"):
        raise UserError(
            f"config.execution.attention={kernel} is for {'NVIDIA GPUs' if gpu else 'TPUs'}, and the "
            f"mesh is of devices of {platform}; set execution.attention=auto"
        )
    if kernel == "cudnn" and not takes_cudnn(capability):
        raise UserError(
            f"config.execution.attention=cudnn needs GPUs of compute capability {CAPABILITY} (H100), and these are of "
            f"{capability}; set execution.attention=auto"
        )


def check_row_length(kernel: str, row_length: int) -> None:
    """Raises: UserError if rows of this many tokens cannot be cut into the kernel's blocks."""
    if kernel_for(kernel, row_length) != kernel:
        below = max(row_length // _TPU_LANES, 1) * _TPU_LANES
        raise UserError(
            f"config.row_length={row_length} is not a multiple of {_TPU_LANES}, which the {kernel} attention kernel "
            f"needs; set row_length={below}, or execution.attention=blocked (slower)"
        )


def kernel_for(kernel: str, row_length: int) -> str:
    """`kernel`, or "blocked" if it cannot cut rows of this length: those of an evaluation are as long as their longest
    text."""
    return "blocked" if kernel in ("splash", "triton") and row_length % _TPU_LANES else kernel


def flash_attention(
    q_BTHD, k_BTKD, v_BTKD, ids_BT, *, kernel: str, block: int = 512, segments: int = 32, interpret: bool = False
) -> jax.Array:
    """Causal grouped-query attention within the segments of packed rows, as `attention.attention`.

    Each device computes its own rows and heads, in `jax.shard_map` under the mesh that is set; sequences are whole.

    Args:
      ids_BT: int32, segments; 0 is padding, whose queries return a finite value of no meaning.
      kernel: "blocked", "splash", "cudnn" or "triton".
      block: tokens of a tile of splash attention, cut to what divides T; Triton's are those that JAX measured.
      segments: of a row, padding's counted, up to which cuDNN computes it; if a row has more, all go in blocks.
      interpret: runs the kernel's operations one by one on any device, for tests; not those of cuDNN.
    """
    if kernel == "blocked":  # in plain JAX, which cuts it itself
        return blocked_attention(q_BTHD, k_BTKD, v_BTKD, ids_BT)
    if kernel == "cudnn":
        call = functools.partial(cudnn_attention, segments=segments)
    else:
        call = functools.partial({"splash": _splash, "triton": _triton}[kernel], block=block, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return call(q_BTHD, k_BTKD, v_BTKD, ids_BT)
    rows, heads = partition_spec(("batch", "heads"))
    of_heads = PartitionSpec(rows, None, heads, None)
    specs = {"in_specs": (of_heads, of_heads, of_heads, PartitionSpec(rows, None)), "out_specs": of_heads}
    # What a kernel does is not known to the check.
    return jax.shard_map(call, check_vma=False, **specs)(q_BTHD, k_BTKD, v_BTKD, ids_BT)


def _splash(q_BTHD, k_BTKD, v_BTKD, ids_BT, *, block: int, interpret: bool):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, T, H, D = q_BTHD.shape
    # Two backward kernels (dkv, dq) rather than the fused one, whose partial gradients of the queries (a copy for each
    # tile of the keys) are 1.2 GB for a row of 8,192 tokens and 40 heads.
    sides = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((T, T))] * H),
        block_sizes=splash.BlockSizes(**dict.fromkeys(sides, _divisor(T, block))),
        head_shards=1,  # of what shard_map has cut already
        q_seq_shards=1,
        # A policy that saves "attention" saves the kernel's own residuals, and its forward pass is not run twice.
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    q_BHTD = (q_BTHD * D**-0.5).astype(q_BTHD.dtype).swapaxes(1, 2)  # the kernel does not scale
    k_BKTD, v_BKTD = k_BTKD.swapaxes(1, 2), v_BTKD.swapaxes(1, 2)
    return jax.vmap(kernel)(q_BHTD, k_BKTD, v_BKTD, splash.SegmentIds(ids_BT, ids_BT)).swapaxes(1, 2)


def _triton(q_BTHD, k_BTKD, v_BTKD, ids_BT, *, interpret: bool, **_):
    # Deprecated (docs/performance.md): for GPUs before Hopper, and for float32.
    from jax.experimental.pallas.ops.gpu import attention as triton

    groups = q_BTHD.shape[2] // k_BTKD.shape[2]
    # This kernel knows no groups. Repeated keys are small beside what a layer keeps: one part in four of its MLP.
    k_BTHD, v_BTHD = (jnp.repeat(x, groups, axis=2) for x in (k_BTKD, v_BTKD))
    scale = float(np.float32(q_BTHD.shape[-1]) ** -0.5)
    out_BTHD = triton.mha(q_BTHD, k_BTHD, v_BTHD, ids_BT, sm_scale=scale, causal=True, interpret=interpret)
    return checkpoint_name(out_BTHD, "attention")


def _divisor(T: int, block: int) -> int:
    """The largest multiple of a TPU's lanes that divides T and is at most `block`."""
    return max(size for size in range(_TPU_LANES, max(block, _TPU_LANES) + 1, _TPU_LANES) if T % size == 0)
