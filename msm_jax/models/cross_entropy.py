"""Next-token loss from the last layer's output, without logits of all tokens at once.

Logits are the largest array of a training step: 8,192 tokens of Qwen2.5's 152,064 ids are 5 GB in float32, and their
gradient as much again. Here they are made for one chunk of every row at a time. The gradient by the output and by the
head is computed in the same pass, as in Liger Kernel (arXiv 2410.10989): the loss is the end of the chain, so its
cotangent is one number that can be multiplied in later, and no chunk's logits are computed twice.

Shapes: B rows, T tokens, M model width, V vocabulary, N chunks, C tokens of a chunk.
"""

import functools

import jax
import jax.numpy as jnp

from msm_jax.parallel.sharding import constrain


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy(
    x_BTM: jax.Array,
    head_MV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    chunk: int,
    head_is_trained: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Sum over tokens of weight times cross-entropy, in nats.

    Args:
      x_BTM: normed output of the last layer, in the type of the matrix products.
      head_MV: in the same type; logits, softmax and loss are float32.
      targets_BT: int32; any id where the weight is 0.
      weights_BT: float32; they carry no gradient.
      chunk: tokens of each row whose logits are held at once.
      head_is_trained: whether the head's gradient is wanted; a frozen head gets zeros.

    Returns: the sum, float32[], and its terms, float32[B, T], which carry no gradient.
    """
    x_NBCM, targets_NBC, weights_NBC = _chunks((x_BTM, targets_BT, weights_BT), chunk)
    head_MV = constrain(head_MV, (None, "vocab"))  # gathered over fsdp once, not in each chunk

    def of_chunk(x):
        return _losses(*x, head_MV)[0]

    losses_BT = _join(jax.lax.map(of_chunk, (x_NBCM, targets_NBC, weights_NBC)), x_BTM.shape[1])
    return losses_BT.sum(), losses_BT


def _forward(x_BTM, head_MV, targets_BT, weights_BT, chunk, head_is_trained):
    chunks = _chunks((x_BTM, targets_BT, weights_BT), chunk)
    gathered_MV = constrain(head_MV, (None, "vocab"))

    def of_chunk(head_gradient_MV, chunk):
        x_BCM, targets_BC, weights_BC = chunk
        losses_BC, p_BCV, is_target_BCV = _losses(x_BCM, targets_BC, weights_BC, gathered_MV)
        gradient_BCV = ((p_BCV - is_target_BCV) * weights_BC[..., None]).astype(x_BCM.dtype)
        x_gradient_BCM = constrain(jnp.einsum("bcv,mv->bcm", gradient_BCV, gathered_MV), ("batch", None, None))
        if head_is_trained:
            head_gradient_MV += jnp.einsum("bcm,bcv->mv", x_BCM, gradient_BCV, preferred_element_type=jnp.float32)
        return head_gradient_MV, (losses_BC, x_gradient_BCM)

    zeros = jnp.zeros(head_MV.shape, jnp.float32) if head_is_trained else None
    head_gradient_MV, (losses_NBC, x_gradient_NBCM) = jax.lax.scan(of_chunk, zeros, chunks)
    losses_BT = _join(losses_NBC, x_BTM.shape[1])
    return (losses_BT.sum(), losses_BT), (_join(x_gradient_NBCM, x_BTM.shape[1]), head_gradient_MV, head_MV)


def _backward(chunk, head_is_trained, residuals, cotangents):
    x_gradient_BTM, head_gradient_MV, head_MV = residuals
    scale, _ = cotangents
    if head_is_trained:
        by_head = (scale * head_gradient_MV).astype(head_MV.dtype)
    else:
        by_head = jnp.zeros_like(head_MV)
    return (scale * x_gradient_BTM).astype(x_gradient_BTM.dtype), by_head, None, None


cross_entropy.defvjp(_forward, _backward)


def _losses(x_BCM, targets_BC, weights_BC, head_MV):
    """Weighted losses float32[B, C], and of the logits the softmax and where the target is, [B, C, V]."""
    logits_BCV = jnp.einsum("bcm,mv->bcv", x_BCM, head_MV, preferred_element_type=jnp.float32)
    logits_BCV = constrain(logits_BCV, ("batch", None, "vocab"))
    # By comparison, not by index: an index into a vocabulary that is split over devices would gather it.
    is_target_BCV = targets_BC[..., None] == jnp.arange(head_MV.shape[1])
    normaliser_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
    chosen_BC = jnp.sum(logits_BCV, axis=-1, where=is_target_BCV)
    losses_BC = (normaliser_BC - chosen_BC) * weights_BC
    return losses_BC, jnp.exp(logits_BCV - normaliser_BC[..., None]), is_target_BCV


def _chunks(arrays, chunk: int):
    """[B, T, ...] -> [N, B, C, ...], with zeros behind the last tokens where N does not divide T."""
    T = arrays[0].shape[1]
    N = -(-T // chunk)
    C = -(-T // N)

    def cut(x):
        x = jnp.pad(x, ((0, 0), (0, N * C - T)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(x.shape[0], N, C, *x.shape[2:]).swapaxes(0, 1)

    return jax.tree.map(cut, arrays)


def _join(x_NBC, T: int):
    """[N, B, C, ...] -> [B, T, ...]"""
    x_BNC = x_NBC.swapaxes(0, 1)
    return x_BNC.reshape(x_BNC.shape[0], -1, *x_BNC.shape[3:])[:, :T]
