"""What training changes."""

import dataclasses
from typing import Any

import jax

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state that a checkpoint holds. A frozen base is not part of it.

    Attributes:
      step: int32[], batches seen; those whose loss was not finite count, though they changed nothing else.
      params: what is trained, float32: the adapter, or the whole model.
      opt_state: optax state of `params`.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
