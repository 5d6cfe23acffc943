"""Attention of packed rows in blocks of queries, in plain JAX: for CPUs, and for rows that no other kernel can cut.

As in FlashAttention (arXiv 2205.14135, 2307.08691) the backward pass computes the weights again from the logits and
each query's log-normaliser, so a layer keeps no array of [T, T]; and each block of queries looks at no key behind its
last, which leaves out nearly half of the products. A block's logits are small enough to stay in a CPU's cache.

Shapes: B rows, T tokens, H query heads, K key heads (H = K * G), D head size, C queries of a block, S keys that they
see, Q = G * C.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

_HIDDEN = float(jnp.finfo(jnp.float32).min)
# Few enough to compile soon, many enough to leave out most of what is never looked at.
_BLOCKS = 8
_SMALLEST_BLOCK = 64


@jax.custom_vjp
def blocked_attention(q_BTHD: jax.Array, k_BTKD: jax.Array, v_BTKD: jax.Array, ids_BT: jax.Array) -> jax.Array:
    """As `attention.attention`, of a row to itself, where tokens of a segment stand in the order of their positions.

    `ids_BT`: int32, segments. Queries of padding, 0, return a finite value of no meaning.
    """
    return _forward(q_BTHD, k_BTKD, v_BTKD, ids_BT)[0]


def _forward(q_BTHD, k_BTKD, v_BTKD, ids_BT):
    q_BKGTD, k_BKTD, v_BKTD = _by_head(q_BTHD, k_BTKD.shape[2]), k_BTKD.swapaxes(1, 2), v_BTKD.swapaxes(1, 2)
    outs, normalisers = [], []
    for begin, end in _blocks(q_BTHD.shape[1]):
        logits_BKGCS = _logits(q_BKGTD[:, :, :, begin:end], k_BKTD[:, :, :end], ids_BT, begin, end)
        largest_BKGC1 = logits_BKGCS.max(axis=-1, keepdims=True)
        weights_BKGCS = jnp.exp(logits_BKGCS - largest_BKGC1)
        sum_BKGC1 = weights_BKGCS.sum(axis=-1, keepdims=True)
        outs.append(_product("bkqs,bksd->bkqd", weights_BKGCS.astype(v_BKTD.dtype), v_BKTD[:, :, :end]) / sum_BKGC1)
        normalisers.append(largest_BKGC1 + jnp.log(sum_BKGC1))
    # Named as splash attention names its own, so that a policy that saves "attention" does not compute them again.
    out_BTHD = checkpoint_name(_by_token(jnp.concatenate(outs, axis=3)).astype(q_BTHD.dtype), "attention")
    normaliser_BKGT1 = checkpoint_name(jnp.concatenate(normalisers, axis=3), "attention")
    return out_BTHD, (q_BTHD, k_BTKD, v_BTKD, ids_BT, out_BTHD, normaliser_BKGT1)


def _backward(residuals, cotangent_BTHD):
    q_BTHD, k_BTKD, v_BTKD, ids_BT, out_BTHD, normaliser_BKGT1 = residuals
    K, dtype = k_BTKD.shape[2], v_BTKD.dtype
    q_BKGTD, k_BKTD, v_BKTD = _by_head(q_BTHD, K), k_BTKD.swapaxes(1, 2), v_BTKD.swapaxes(1, 2)
    cotangent_BKGTD = _by_head(cotangent_BTHD, K)
    # What the normaliser's part of the softmax's gradient sums to, for each query.
    shared_BKGT1 = _by_head((cotangent_BTHD * out_BTHD).astype(jnp.float32).sum(axis=-1, keepdims=True), K)
    # Tokens last: a CPU computes a wide product faster than the same one tall.
    by_k_BKDT, by_v_BKDT = (jnp.zeros(k_BKTD.swapaxes(2, 3).shape, jnp.float32) for _ in range(2))
    by_q = []
    for begin, end in _blocks(q_BTHD.shape[1]):
        q_BKGCD, cotangent_BKGCD, normaliser_BKGC1, shared_BKGC1 = (
            x[:, :, :, begin:end] for x in (q_BKGTD, cotangent_BKGTD, normaliser_BKGT1, shared_BKGT1)
        )
        k_BKSD, v_BKSD = k_BKTD[:, :, :end], v_BKTD[:, :, :end]
        weights_BKGCS = jnp.exp(_logits(q_BKGCD, k_BKSD, ids_BT, begin, end) - normaliser_BKGC1)
        by_weights_BKGCS = _product("bkqd,bksd->bkqs", cotangent_BKGCD, v_BKSD)
        by_logits_BKGCS = (weights_BKGCS * (by_weights_BKGCS - shared_BKGC1)).astype(dtype)
        by_q.append(_product("bkqs,bksd->bkqd", by_logits_BKGCS, k_BKSD))
        by_k_BKDT = by_k_BKDT.at[..., :end].add(_product("bkqs,bkqd->bkds", by_logits_BKGCS, q_BKGCD))
        by_v_BKDT = by_v_BKDT.at[..., :end].add(
            _product("bkqs,bkqd->bkds", weights_BKGCS.astype(dtype), cotangent_BKGCD)
        )
    scale = q_BTHD.shape[-1] ** -0.5
    by_q_BTHD = _by_token(jnp.concatenate(by_q, axis=3)) * scale
    by_k_BTKD, by_v_BTKD = (x.transpose(0, 3, 1, 2) for x in (by_k_BKDT * scale, by_v_BKDT))
    return by_q_BTHD.astype(q_BTHD.dtype), by_k_BTKD.astype(k_BTKD.dtype), by_v_BTKD.astype(dtype), None


blocked_attention.defvjp(_forward, _backward)


def _blocks(T: int) -> Iterator[tuple[int, int]]:
    size = max(-(-T // _BLOCKS), _SMALLEST_BLOCK)
    return ((begin, min(begin + size, T)) for begin in range(0, T, size))


def _logits(q_BKGCD, k_BKSD, ids_BT, begin: int, end: int):
    """float32[B, K, G, C, S] of the queries from `begin` to `end` and the keys before `end`."""
    logits_BKGCS = _product("bkqd,bksd->bkqs", q_BKGCD, k_BKSD) * q_BKGCD.shape[-1] ** -0.5
    ids_BC, ids_BS = ids_BT[:, begin:end], ids_BT[:, :end]
    visible_BCS = (ids_BC[:, :, None] == ids_BS[:, None, :]) & (jnp.arange(begin, end)[:, None] >= jnp.arange(end))
    return jnp.where(visible_BCS[:, None, None], logits_BKGCS, _HIDDEN)


def _product(axes: str, x, y):
    """float32 product of [B, K, ...] and [B, K, ...] for each row and key head; in `axes` q stands for G and C: the
    queries of a group are rows of one matrix, and keys are not repeated."""
    B, K, G = x.shape[:3]
    x, y = (z.reshape(B, K, -1, z.shape[-1]) for z in (x, y))
    product = jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)
    return product.reshape(B, K, G, -1, product.shape[-1]) if axes.endswith(("qs", "qd")) else product


def _by_head(x_BTHD, K: int):
    """[B, T, H, ...] -> [B, K, G, T, ...]"""
    B, T, H, D = x_BTHD.shape
    return x_BTHD.reshape(B, T, K, H // K, D).transpose(0, 2, 3, 1, 4)


def _by_token(x_BKGTD):
    """[B, K, G, T, D] -> [B, T, H, D]"""
    B, K, G, T, D = x_BKGTD.shape
    return x_BKGTD.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, D)
