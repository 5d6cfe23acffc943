"""Next-token loss from the last layer's output, without logits of all tokens at once.

Logits are the largest array of a training step: 8,192 tokens of Qwen2.5's 152,064 ids are 5 GB in float32, and their
gradient as much again. Here they are made for one chunk of every row at a time. The gradient by the output and by the
head is computed in the same pass, as in Liger Kernel (arXiv 2410.10989): the loss is the end of the chain, so its
cotangent is one number that can be multiplied in later, and no chunk's logits are computed twice.

The tokens of a chunk are one axis, and the vocabulary is the first, which CPUs compute faster than [B, C, V]. Elsewhere
the compiler lays logits out as it likes.

Shapes: B rows, T tokens, M model width, V vocabulary, N chunks, C tokens of a chunk in each row, S = B * C.
"""

import functools

import jax
import jax.numpy as jnp

from msm_jax.parallel.sharding import constrain


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy(
    x_BTM, head_VM, targets_BT, weights_BT, chunk: int, head_is_trained: bool = True
) -> tuple[jax.Array, jax.Array]:
    """Sum over tokens of weight times cross-entropy, in nats.

    Args:
      x_BTM: normed output of the last layer, in the type of the matrix products, as is `head_VM`; logits, softmax and
        loss are float32.
      targets_BT: int32; any id where the weight is 0.
      weights_BT: float32; they carry no gradient.
      chunk: tokens of each row whose logits are held at once.
      head_is_trained: whether the head's gradient is wanted; a frozen head gets zeros.

    Returns: the sum, float32[], and its terms, float32[B, T], which carry no gradient.
    """
    chunks = _chunks((x_BTM, targets_BT, weights_BT), chunk)
    head_VM = constrain(head_VM, ("vocab", None))  # gathered over fsdp once, not in each chunk
    losses_BT = _join(jax.lax.map(lambda chunk: _losses(*chunk, head_VM)[0], chunks), x_BTM.shape)
    return losses_BT.sum(), losses_BT


def _forward(x_BTM, head_VM, targets_BT, weights_BT, chunk, head_is_trained):
    chunks = _chunks((x_BTM, targets_BT, weights_BT), chunk)
    gathered_VM = constrain(head_VM, ("vocab", None))

    def of_chunk(head_gradient_VM, chunk):
        x_SM, targets_S, weights_S = chunk
        losses_S, p_VS, is_target_VS = _losses(x_SM, targets_S, weights_S, gathered_VM)
        gradient_VS = ((p_VS - is_target_VS) * weights_S).astype(x_SM.dtype)
        x_gradient_SM = constrain(jnp.einsum("vs,vm->sm", gradient_VS, gathered_VM), ("batch", None))
        if head_is_trained:
            head_gradient_VM += jnp.einsum("vs,sm->vm", gradient_VS, x_SM, preferred_element_type=jnp.float32)
        return head_gradient_VM, (losses_S, x_gradient_SM)

    zeros = jnp.zeros(head_VM.shape, jnp.float32) if head_is_trained else None
    head_gradient_VM, (losses_NS, x_gradient_NSM) = jax.lax.scan(of_chunk, zeros, chunks)
    losses_BT = _join(losses_NS, x_BTM.shape)
    return (losses_BT.sum(), losses_BT), (_join(x_gradient_NSM, x_BTM.shape), head_gradient_VM, head_VM)


def _backward(chunk, head_is_trained, residuals, cotangents):
    x_gradient_BTM, head_gradient_VM, head_VM = residuals
    scale, _ = cotangents
    by_head_VM = (scale * head_gradient_VM).astype(head_VM.dtype) if head_is_trained else jnp.zeros_like(head_VM)
    return (scale * x_gradient_BTM).astype(x_gradient_BTM.dtype), by_head_VM, None, None


cross_entropy.defvjp(_forward, _backward)


def _losses(x_SM, targets_S, weights_S, head_VM):
    """Weighted losses float32[S], and of the logits the softmax and where the target is, [V, S]."""
    logits_VS = jnp.einsum("vm,sm->vs", head_VM, x_SM, preferred_element_type=jnp.float32)
    logits_VS = constrain(logits_VS, ("vocab", "batch"))
    # By comparison, not by index: an index into a vocabulary that is split over devices would gather it.
    is_target_VS = jnp.arange(head_VM.shape[0])[:, None] == targets_S
    normaliser_S = jax.nn.logsumexp(logits_VS, axis=0)
    chosen_S = jnp.sum(logits_VS, axis=0, where=is_target_VS)
    losses_S = (normaliser_S - chosen_S) * weights_S
    return losses_S, jnp.exp(logits_VS - normaliser_S), is_target_VS


def _chunks(arrays, chunk: int):
    """[B, T, ...] -> [N, S, ...], with zeros behind the last tokens where N does not divide T."""
    B, T = arrays[0].shape[:2]
    N = -(-T // chunk)
    C = -(-T // N)

    def cut(x):
        x = jnp.pad(x, ((0, 0), (0, N * C - T)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(B, N, C, *x.shape[2:]).swapaxes(0, 1).reshape(N, B * C, *x.shape[2:])

    return jax.tree.map(cut, arrays)


def _join(x_NS, shape: tuple[int, ...]):
    """[N, S, ...] -> [B, T, ...], of which `shape` has B and T."""
    B, T = shape[:2]
    x_BNC = x_NS.reshape(x_NS.shape[0], B, -1, *x_NS.shape[2:]).swapaxes(0, 1)
    return x_BNC.reshape(B, -1, *x_NS.shape[2:])[:, :T]
