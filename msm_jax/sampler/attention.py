"""Attention of many samples to one prompt, whose keys and values are there once.

What a query may see lies in parts: the prompt, which a group of rows shares, what its own row has drawn, and what it
has drawn in the present block of steps. Each part gives its sum of values, weighted from its own largest logit, and
`merge` puts them on one scale: the online softmax of FlashAttention (arXiv 2205.14135), over parts that lie apart as in
Hydragen (arXiv 2402.05099). Logits, weights and sums are float32.

Shapes: G groups, R rows of a group, B = G R rows, C tokens of a chunk, H query heads, K key heads, D head size, P
prompt slots, S slots of a row, Q queries of a key head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from msm_jax.sampler.state import Int8


class Part(NamedTuple):
    """Attention to some of the keys. One that has no visible key weighs nothing."""

    values: jax.Array  # float32[..., Q, D], summed with weights exp(logit - largest)
    largest: jax.Array  # float32[..., Q, 1], the largest visible logit, or -inf
    total: jax.Array  # float32[..., Q, 1], sum of the weights


def attend_part(q: jax.Array, k: jax.Array | Int8, v: jax.Array | Int8, visible: jax.Array) -> Part:
    """Queries [..., Q, D] to keys and values [..., S, D]; `visible`: bool, to be broadcast to [..., Q, S]."""
    (k, k_scale), (v, v_scale) = _numbers(k, q.dtype), _numbers(v, q.dtype)
    logits = jnp.einsum("...qd,...sd->...qs", q, k, preferred_element_type=jnp.float32)
    logits = jnp.where(visible, logits * (k_scale * q.shape[-1] ** -0.5), -jnp.inf)
    largest = logits.max(axis=-1, keepdims=True)
    # Of a part without visible keys the largest is -inf, and -inf - (-inf) is no number.
    weights = jnp.exp(logits - jnp.where(jnp.isfinite(largest), largest, 0.0))
    values = jnp.einsum(
        "...qs,...sd->...qd", (weights * v_scale).astype(q.dtype), v, preferred_element_type=jnp.float32
    )
    return Part(values, largest, weights.sum(axis=-1, keepdims=True))


def _numbers(x: jax.Array | Int8, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array | float]:
    """For a product: in its type, and what the product along S is still to be multiplied by, [..., 1, S] or 1."""
    return (x.values.astype(dtype), jnp.swapaxes(x.scale, -1, -2)) if isinstance(x, Int8) else (x.astype(dtype), 1.0)


def merge(parts: list[Part]) -> jax.Array:
    """The mean of all parts' values, float32[..., Q, D]; zero where no part has a visible key."""
    largest = parts[0].largest
    for part in parts[1:]:
        largest = jnp.maximum(largest, part.largest)
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    scales = [jnp.exp(part.largest - largest) for part in parts]  # exp(-inf) is 0
    values = sum(part.values * scale for part, scale in zip(parts, scales, strict=True))
    total = sum(part.total * scale for part, scale in zip(parts, scales, strict=True))
    return values / jnp.where(total > 0, total, 1.0)


def attend_prompt(q_BHD, k_GKPD, v_GKPD, length_G) -> Part:
    """All of a group's queries to the first `length` keys of its prompt: one product, of [K, Q, D], Q = R H / K. As a
    part of [B, K, H / K, D]."""
    (G, K, P, D), (B, H, _) = k_GKPD.shape, q_BHD.shape
    q_GKQD = _by_head(q_BHD.reshape(G, -1, H, D), K)
    part = attend_part(q_GKQD, k_GKPD, v_GKPD, jnp.arange(P) < length_G[:, None, None, None])
    return jax.tree.map(
        lambda x: x.reshape(G, K, -1, H // K, x.shape[-1]).swapaxes(1, 2).reshape(B, K, H // K, -1), part
    )


def attend_rows(q_BHD, k_BKSD, v_BKSD, length_B) -> Part:
    """Each row's query to the first `length` keys of its own; as a part of [B, K, H / K, D]."""
    (B, H, D), (K, S) = q_BHD.shape, k_BKSD.shape[1:3]
    return attend_part(q_BHD.reshape(B, K, H // K, D), k_BKSD, v_BKSD, jnp.arange(S) < length_B[:, None, None, None])


def attend_chunk(q_GCHD, k_GKPD, v_GKPD, start_G, block: int) -> jax.Array:
    """Causal attention of a chunk of a prompt, of which the first token stands in slot `start`, to all of the prompt
    up to it, which holds the chunk's own keys and values too: [G, C, H, D]. Blocks of keys behind the last query are
    not looked at."""
    G, C, H, D = q_GCHD.shape
    K, P = k_GKPD.shape[1:3]
    q_GKQD = _by_head(q_GCHD, K)
    at_GQ = jnp.repeat(start_G[:, None] + jnp.arange(C), H // K, axis=1)

    def visible(begin, size):
        return (begin + jnp.arange(size)) <= at_GQ[:, None, :, None]

    if P <= block:
        return _by_token(merge([attend_part(q_GKQD, k_GKPD, v_GKPD, visible(0, P))]), q_GCHD)

    def add(i, so_far: Part) -> Part:
        k, v = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * block, block, axis=2), (k_GKPD, v_GKPD))
        part = attend_part(q_GKQD, k, v, visible(i * block, block))
        largest = jnp.maximum(so_far.largest, part.largest)
        safe = jnp.where(jnp.isfinite(largest), largest, 0.0)
        old, new = jnp.exp(so_far.largest - safe), jnp.exp(part.largest - safe)
        return Part(so_far.values * old + part.values * new, largest, so_far.total * old + part.total * new)

    zeros = jnp.zeros((*q_GKQD.shape[:-1], 1), jnp.float32)
    empty = Part(jnp.zeros(q_GKQD.shape, jnp.float32), zeros - jnp.inf, zeros)
    blocks = (jnp.max(start_G) + C + block - 1) // block
    return _by_token(merge([jax.lax.fori_loop(0, blocks, add, empty)]), q_GCHD)


def attend_decoding(q_BHD, prompt, prompt_length_G, rows, length_B, block, step) -> jax.Array:
    """The next token of each row: to its group's prompt, its own earlier tokens, and those of the present block, of
    which it may see slots up to `step`: [B, H, D]. `prompt`, `rows` and `block` are pairs of keys and values."""
    parts = [attend_prompt(q_BHD, *prompt, prompt_length_G), attend_rows(q_BHD, *rows, length_B)]
    parts.append(attend_rows(q_BHD, *block, jnp.full_like(length_B, step + 1)))
    return merge(parts).reshape(q_BHD.shape).astype(q_BHD.dtype)


def _by_head(q_GTHD, K: int):
    """[G, K, T H / K, D]: the queries of a key head are rows of one matrix."""
    G, T, H, D = q_GTHD.shape
    return q_GTHD.reshape(G, T, K, H // K, D).swapaxes(1, 2).reshape(G, K, T * (H // K), D)


def _by_token(values_GKQD, q_GTHD):
    """[G, K, Q, D] -> [G, T, H, D], in the type of the queries."""
    G, T, H, D = q_GTHD.shape
    K = values_GKQD.shape[1]
    values = values_GKQD.reshape(G, K, T, H // K, D).swapaxes(1, 2)
    return values.reshape(G, T, H, D).astype(q_GTHD.dtype)
