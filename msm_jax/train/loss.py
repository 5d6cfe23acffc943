"""Which tokens are targets. Loss is (sum, weight): divided once, globally, by whoever has seen the whole batch.

Shapes: B rows, T tokens.
"""

import jax
import jax.numpy as jnp


def targets_and_weights(
    tokens_BT: jax.Array, segments_BT: jax.Array, mask_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Shifts tokens into targets. Position t predicts token t+1 if that is trained and of the same segment.

    Returns: targets int32[B, T] and weights float32[B, T], 0 or 1. The last position has no target.
    """

    def shift(x_BT: jax.Array) -> jax.Array:
        return jnp.pad(x_BT[:, 1:], ((0, 0), (0, 1)))

    weights_BT = shift(mask_BT) & (shift(segments_BT) == segments_BT) & (segments_BT > 0)
    return shift(tokens_BT), weights_BT.astype(jnp.float32)
