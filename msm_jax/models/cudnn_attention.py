"""Attention of packed rows by cuDNN, for NVIDIA GPUs from Hopper on, in bfloat16.

cuDNN takes the segments of a row by where each begins and how long it is (jax-ml/jax #25812).
`jax.nn.dot_product_attention(implementation="cudnn")` passes on neither, so what it calls is called here. The number of
segments of a row is a size of the compiled program. In the backward pass XLA gives each of them float32 numbers for a
whole row ([segments, T, H, D]: openxla/xla `GetCudnnFlashAttentionBackwardOperationGraph` with cuDNN's `dQ_accum`),
so few are better than many.

Shapes: B rows, T tokens, H query heads, K key heads (H = K * G), D head size, S segments of a row at most.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

MOST_SEGMENTS = 64  # 8.6 GB for a row of 8,192 tokens and 32 heads of 128
CAPABILITY = 9.0  # Hopper's: older GPUs cannot take segments (fused_attention_stablehlo.check_is_flash_attention)
# Before, segments of grouped keys were looked for at the places of the queries' (jax-ml/jax #39521).
_TAKES_GROUPS = jax.__version_info__ >= (0, 11, 1)


def segments_for(segments: int) -> int:
    """The size for rows of so many segments at most, padding's counted: a power of two, so that stages whose rows
    differ a little share a compiled program; from 2, since cuDNN knows one segment by other arguments."""
    return 1 << max(segments - 1, 1).bit_length()


def what_cudnn_lacks(dtype: str, segments: int) -> str | None:
    """Why cuDNN cannot compute attention in `dtype`, of rows of so many segments at most; None if it can."""
    if dtype != "bfloat16":
        return f"cuDNN's attention is not made for {dtype}"
    if segments > MOST_SEGMENTS:
        return f"a row has {segments} segments, and cuDNN's attention needs much memory for more than {MOST_SEGMENTS}"
    return None


def segments_of(ids_BT: jax.Array, segments: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where the segments of each row lie, as cuDNN wants it.

    A segment is a run of one id; so is padding, that every place of what cuDNN writes is written.

    Returns: lengths int32[B, S]; offsets int32[B, S + 1], of each one's first token; -1 in both behind the last
      segment; and the number of segments int32[B], which may be more than S: then the last ones are left out.
    """
    begins_BT = jnp.pad(ids_BT[:, 1:] != ids_BT[:, :-1], ((0, 0), (1, 0)))
    run_BT = jnp.cumsum(begins_BT, axis=1, dtype=jnp.int32)  # from 0
    ends_BS = (run_BT[:, None, :] <= jnp.arange(segments)[:, None]).sum(axis=-1, dtype=jnp.int32)
    offsets_BS = jnp.pad(ends_BS[:, :-1], ((0, 0), (1, 0)))
    lengths_BS = ends_BS - offsets_BS
    there_BS = lengths_BS > 0
    offsets_BS, lengths_BS = (jnp.where(there_BS, x, -1) for x in (offsets_BS, lengths_BS))
    return lengths_BS, jnp.pad(offsets_BS, ((0, 0), (0, 1)), constant_values=-1), run_BT[:, -1] + 1


def cudnn_attention(q_BTHD, k_BTKD, v_BTKD, ids_BT, segments: int) -> jax.Array:
    """As `blocked_attention`, in bfloat16 and of rows of `segments` segments at most, padding's counted.

    A row that has more is all NaN: so it cannot be trained on unseen.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    lengths_BS, offsets_BS, counts_B = segments_of(ids_BT, segments)
    if not _TAKES_GROUPS:
        groups = q_BTHD.shape[2] // k_BTKD.shape[2]
        k_BTKD, v_BTKD = (jnp.repeat(x, groups, axis=2) for x in (k_BTKD, v_BTKD))
    out_BTHD = cudnn.dot_product_attention(
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
    whole_B111 = (counts_B <= segments)[:, None, None, None]
    return checkpoint_name(jnp.where(whole_B111, out_BTHD, jnp.nan), "attention")
