import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def random_tree():
    """Small random values in the place of every leaf; around one where these are the scales of norms."""

    def random_tree(shapes, seed=0):
        rng = np.random.default_rng(seed)

        def draw(path, leaf):
            noise = rng.standard_normal(leaf.shape).astype(np.float32)
            return 1 + 0.3 * noise if path[-1].key == "scale" else 0.3 * noise

        return jax.tree_util.tree_map_with_path(draw, shapes)

    return random_tree


@pytest.fixture(scope="session")
def packed():
    """Two rows of ten tokens in several segments; the first ends in padding. Tokens are below 13."""
    tokens = np.random.default_rng(7).integers(0, 13, (2, 10))
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 0, 0], [1] * 6 + [2] * 4])
    positions = np.array([[0, 1, 2, 0, 1, 2, 3, 0, 0, 0], [*range(6), *range(4)]])
    return tuple(x.astype(np.int32) for x in (tokens, segments, positions))
