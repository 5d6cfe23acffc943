"""Attention over packed rows.

Shapes: B rows, T queries, S keys, H query heads, K key heads (H = K * G), D head size, Q = T * G.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Segments(NamedTuple):
    """Who may look at whom. A query sees the keys of its own segment at its own position or before.

    Ids are 1-based, 0 is padding (which sees and is seen by nothing). Positions count from 0 within a segment.
    """

    q_ids: jax.Array  # int32[B, T]
    q_positions: jax.Array  # int32[B, T]
    kv_ids: jax.Array  # int32[B, S]
    kv_positions: jax.Array  # int32[B, S]

    @classmethod
    def of_rows(cls, ids_BT: jax.Array, positions_BT: jax.Array) -> "Segments":
        """Self-attention over the row itself."""
        return cls(ids_BT, positions_BT, ids_BT, positions_BT)


def attention(q_BTHD: jax.Array, k_BSKD: jax.Array, v_BSKD: jax.Array, segments: Segments) -> jax.Array:
    """Causal grouped-query attention within segments; the reference that faster kernels are compared to.

    Softmax in float32. Queries of padding return a finite value of no meaning. Returns [B, T, H, D] in q's dtype.
    """
    B, T, H, D = q_BTHD.shape
    S, K = k_BSKD.shape[1:3]
    # The queries of a group are rows of one matrix: neither keys are repeated, nor logits transposed.
    q_BKQD = q_BTHD.reshape(B, T, K, H // K, D).swapaxes(1, 2).reshape(B, K, T * (H // K), D)
    k_BKSD, v_BKSD = k_BSKD.swapaxes(1, 2), v_BSKD.swapaxes(1, 2)
    logits_BKQS = jnp.einsum("bkqd,bksd->bkqs", q_BKQD, k_BKSD, preferred_element_type=jnp.float32) * D**-0.5
    visible_BTS = (segments.q_ids[:, :, None] == segments.kv_ids[:, None, :]) & (segments.kv_ids[:, None, :] > 0)
    visible_BTS &= segments.q_positions[:, :, None] >= segments.kv_positions[:, None, :]
    logits_BKTGS = logits_BKQS.reshape(B, K, T, H // K, S)
    logits_BKTGS = jnp.where(visible_BTS[:, None, :, None], logits_BKTGS, jnp.finfo(jnp.float32).min)
    weights_BKTGS = jax.nn.softmax(logits_BKTGS, axis=-1).astype(v_BSKD.dtype)
    out_BKQD = jnp.einsum("bkqs,bksd->bkqd", weights_BKTGS.reshape(logits_BKQS.shape), v_BKSD)
    return out_BKQD.reshape(B, K, T, H // K, D).swapaxes(1, 2).reshape(B, T, H, D).astype(q_BTHD.dtype)


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of the rotary frequencies: what turns slower than `low` times in the original context is
    slowed by `factor`, what turns faster than `high` times is kept, and between the two it is blended (the rope_type
    "llama3" of Hugging Face's config.json)."""

    factor: float
    low: float  # low_freq_factor
    high: float  # high_freq_factor
    original_length: int  # original_max_position_embeddings, in tokens


def rope_frequencies(head_size: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians per position, float32[D / 2]."""
    half = head_size // 2
    frequency = 1.0 / np.float32(theta) ** (np.arange(half, dtype=np.float32) / np.float32(half))
    if scaling is not None:
        turns = scaling.original_length * frequency / (2 * np.pi)
        kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
        frequency = frequency * (kept + (1 - kept) / scaling.factor)
    return frequency.astype(np.float32)


def rope_angles(positions_BT: jax.Array, frequency: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine of each token's angles, float32[B, T, 1, D / 2] both: once for all layers and heads."""
    angle = positions_BT[:, :, None, None].astype(jnp.float32) * frequency
    return jnp.sin(angle), jnp.cos(angle)


def rope(x_BTHD: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary position embedding (arXiv 2104.09864) in the half-split layout of Hugging Face's Llama; float32 inside."""
    sin, cos = angles
    first, second = jnp.split(x_BTHD.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTHD.dtype)
