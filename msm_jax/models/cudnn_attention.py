"""Attention of packed rows by cuDNN, for NVIDIA GPUs from Hopper on, in bfloat16.

cuDNN takes the segments of a row by where each begins and how long it is (jax-ml/jax #25812).
`jax.nn.dot_product_attention(implementation="cudnn")` passes on neither, so what it calls is called here. How many
segments a row may have is a size of the compiled program. In the backward pass XLA gives each of them float32 numbers
for a whole row ([segments, T, H, D], as read in openxla/xla's `GetCudnnFlashAttentionBackwardOperationGraph` and of the
`dQ_accum` of cuDNN's front end), so the program is made for what most rows have; where one has more, they go in blocks
of queries.

Shapes: B rows, T tokens, H query heads, K key heads (H = K * G), D head size, S segments of a row at most.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from msm_jax.models.blocked_attention import blocked_attention

MOST_SEGMENTS = 64  # 8.6 GB for a row of 8,192 tokens and 32 heads of 128
CAPABILITY = 9.0  # Hopper's: older GPUs cannot take segments (fused_attention_stablehlo.check_is_flash_attention)
# Before, segments of grouped keys were looked for at the places of the queries' (jax-ml/jax #39521).
_TAKES_GROUPS = jax.__version_info__ >= (0, 11, 1)


def segments_for(segments: int) -> int:
    """The size for rows of so many segments, padding's counted: a power of two, so that stages whose rows differ a
    little share a compiled program; from 2, since cuDNN knows one segment by other arguments."""
    return min(1 << max(segments - 1, 1).bit_length(), MOST_SEGMENTS)


def what_cudnn_lacks(dtype: str, head_size: int) -> str | None:
    """Why cuDNN cannot compute attention in `dtype` with heads of this size; None if it can."""
    if dtype != "bfloat16":
        return f"cuDNN's attention is not made for {dtype}"
    if head_size % 8 or head_size > 256:
        return f"cuDNN's attention is not made for heads of {head_size} numbers"
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cudnn_attention(q_BTHD, k_BTKD, v_BTKD, ids_BT, segments: int) -> jax.Array:
    """As `blocked_attention`, and by it where a row has more than `segments` segments, padding's counted.

    The backward pass runs cuDNN's forward pass once more: its statistics, [B * S, H, T], are more than are worth
    keeping.
    """
    return _forward(q_BTHD, k_BTKD, v_BTKD, ids_BT, segments)[0]


def _forward(q_BTHD, k_BTKD, v_BTKD, ids_BT, segments: int):
    out_BTHD = _by_either(segments, lambda attend: attend, q_BTHD, k_BTKD, v_BTKD, ids_BT)
    return checkpoint_name(out_BTHD, "attention"), (q_BTHD, k_BTKD, v_BTKD, ids_BT)


def _backward(segments: int, residuals, cotangent_BTHD):
    def gradients(attend: Callable) -> Callable:
        def run(q_BTHD, k_BTKD, v_BTKD, ids_BT, cotangent_BTHD):
            _, pull_back = jax.vjp(lambda q, k, v: attend(q, k, v, ids_BT), q_BTHD, k_BTKD, v_BTKD)
            return pull_back(cotangent_BTHD)

        return run

    return *_by_either(segments, gradients, *residuals, cotangent_BTHD), None


cudnn_attention.defvjp(_forward, _backward)


def _by_either(segments: int, of: Callable, q_BTHD, k_BTKD, v_BTKD, ids_BT, *more):
    """`of` cuDNN's attention, or of that in blocks."""
    few = _runs(ids_BT)[:, -1].max() < segments
    cudnn = of(functools.partial(_by_cudnn, segments=segments))
    return jax.lax.cond(few, cudnn, of(blocked_attention), q_BTHD, k_BTKD, v_BTKD, ids_BT, *more)


def _by_cudnn(q_BTHD, k_BTKD, v_BTKD, ids_BT, segments: int) -> jax.Array:
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    lengths_BS, offsets_BS = segments_of(ids_BT, segments)
    if not _TAKES_GROUPS:
        groups = q_BTHD.shape[2] // k_BTKD.shape[2]
        k_BTKD, v_BTKD = (jnp.repeat(x, groups, axis=2) for x in (k_BTKD, v_BTKD))
    return cudnn.dot_product_attention(
        q_BTHD,
        k_BTKD,
        v_BTKD,
        q_seqlen=lengths_BS,
        kv_seqlen=lengths_BS,
        q_offsets=offsets_BS,
        kv_offsets=offsets_BS,
        scale=float(np.float32(q_BTHD.shape[-1]) ** -0.5),
        mask_type=cudnn.MaskType.PADDING_CAUSAL,
    )


def segments_of(ids_BT: jax.Array, segments: int) -> tuple[jax.Array, jax.Array]:
    """Where the segments of each row lie, as cuDNN wants it. A row has `segments` of them at most.

    A segment is a run of one id; so is padding, that every place of what cuDNN writes is written.

    Returns: lengths int32[B, S], and offsets int32[B, S + 1] of each one's first token; -1 in both behind the last one.
    """
    ends_BS = (_runs(ids_BT)[:, None, :] <= jnp.arange(segments)[:, None]).sum(axis=-1, dtype=jnp.int32)
    offsets_BS = jnp.pad(ends_BS[:, :-1], ((0, 0), (1, 0)))
    lengths_BS = ends_BS - offsets_BS
    there_BS = lengths_BS > 0
    offsets_BS, lengths_BS = (jnp.where(there_BS, x, -1) for x in (offsets_BS, lengths_BS))
    return lengths_BS, jnp.pad(offsets_BS, ((0, 0), (0, 1)), constant_values=-1)


def _runs(ids_BT: jax.Array) -> jax.Array:
    """The run of equal ids that each token is in, from 0: int32[B, T]."""
    begins_BT = jnp.pad(ids_BT[:, 1:] != ids_BT[:, :-1], ((0, 0), (1, 0)))
    return jnp.cumsum(begins_BT, axis=1, dtype=jnp.int32)
