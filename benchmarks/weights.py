"""Random weights: what is computed does not depend on them."""

from typing import Any

import jax
from jax.sharding import Mesh

from msm_jax.checkpoints import weights
from msm_jax.models import Model


def random_params(model: Model, mesh: Mesh, dtype: str) -> Any:
    """Of the base, in `dtype`, each array drawn where it lies: a large model is never there twice."""
    like = weights.abstract_params(model, mesh, dtype)
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(like))))

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        normal = jax.jit(lambda key: 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype), out_shardings=leaf.sharding)
        return normal(next(keys))

    return jax.tree.map(draw, like)
