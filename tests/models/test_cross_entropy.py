"""The loss in chunks against optax's, which holds all logits."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msm_jax.models.cross_entropy import cross_entropy

ROWS, WIDTH, VOCABULARY = 4, 6, 13


def example(tokens, seed=0, spread=1.0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((ROWS, tokens, WIDTH)) * spread, dtype)
    head = jnp.asarray(rng.standard_normal((VOCABULARY, WIDTH)), dtype)
    targets = jnp.asarray(rng.integers(0, VOCABULARY, (ROWS, tokens)), jnp.int32)
    weights = jnp.asarray(rng.random((ROWS, tokens)) < 0.6, jnp.float32)
    return x, head, targets, weights


def reference(x, head, targets, weights):
    logits = jnp.einsum("btm,vm->btv", x, head, preferred_element_type=jnp.float32)
    terms = optax.softmax_cross_entropy_with_integer_labels(logits, targets) * weights
    return terms.sum(), terms


@functools.cache
def gradients(chunk=None, head_is_trained=True):
    """Compiled: arrays -> ((sum, terms), gradients of three times the sum), so that the cotangent is not one; without a
    chunk, of the reference."""
    loss = reference if chunk is None else lambda *arrays: cross_entropy(*arrays, chunk, head_is_trained)

    def scaled(*arrays):
        return 3.0 * loss(*arrays)[0], loss(*arrays)

    return jax.jit(lambda *arrays: jax.grad(scaled, argnums=(0, 1), has_aux=True)(*arrays)[::-1])


def assert_close(ours, theirs, largest_logit):
    """Within rounding: a hundred-thousandth of the largest number, as sums of large terms are rounded where they are
    large; and a softmax is off by the part of itself that its logits are off by, a last place or two of the largest."""
    scale = max(1.0, float(jnp.abs(theirs).max()))
    rounded = 2 * float(jnp.finfo(jnp.float32).eps) * largest_logit
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=(1e-5 + rounded) * scale)


@settings(max_examples=20)
@hypothesis.example(tokens=8, chunk=1, seed=3, spread=100.0)  # a softmax that two large logits share
@given(st.sampled_from([1, 8]), st.sampled_from([1, 3, 9]), st.integers(0, 2**31), st.sampled_from([0.1, 1.0, 100.0]))
def test_loss_and_gradients_are_those_of_all_logits(tokens, chunk, seed, spread):
    arrays = example(tokens, seed, spread)
    largest = float(jnp.abs(arrays[0] @ arrays[1].T).max())
    expected = gradients()(*arrays)
    for found in (gradients(chunk)(*arrays), (cross_entropy(*arrays, chunk), expected[1])):
        jax.tree.map(lambda a, b: assert_close(a, b, largest), found, expected)


def test_a_frozen_head_gets_no_gradient_and_the_output_its_own():
    arrays = example(8)
    _, (by_x, by_head) = gradients(3, False)(*arrays)
    np.testing.assert_allclose(by_x, gradients()(*arrays)[1][0], rtol=1e-4, atol=1e-5)
    assert not by_head.any()


def test_half_precision_is_summed_in_full():
    """Logits near 1,000, which bfloat16 knows to four units, differ by less."""
    arrays = example(8, spread=300.0, dtype=jnp.bfloat16)
    (total, terms), by = gradients(3)(*arrays)
    (_, expected_terms), expected = gradients()(*arrays)
    assert total.dtype == terms.dtype == jnp.float32 and {leaf.dtype for leaf in by} == {jnp.dtype("bfloat16")}
    np.testing.assert_allclose(terms, expected_terms, rtol=1e-5, atol=1e-4)
    for ours, theirs in zip(by, expected, strict=True):
        ours, theirs = np.float32(ours), np.float32(theirs)
        assert np.linalg.norm(ours - theirs) <= 0.01 * np.linalg.norm(theirs)


@pytest.mark.parametrize("train_head", [True, False])
def test_the_logits_of_one_chunk_are_held(train_head):
    tokens, chunk, vocabulary = 1024, 64, 4096
    shapes = [((2, tokens, 8), jnp.float32), ((vocabulary, 8), jnp.float32), ((2, tokens), jnp.int32)]
    arrays = [jax.ShapeDtypeStruct(*shape) for shape in [*shapes, ((2, tokens), jnp.float32)]]
    gradient = jax.grad(lambda *args: cross_entropy(*args, chunk, train_head)[0], argnums=(0, 1))
    held = jax.jit(gradient).lower(*arrays).compile().memory_analysis().temp_size_in_bytes
    assert held < 4 * (2 * chunk * vocabulary * 4), "the logits of a chunk, their gradient and little else"
    whole = jax.jit(jax.grad(lambda *args: reference(*args)[0])).lower(*arrays).compile().memory_analysis()
    assert held < whole.temp_size_in_bytes / 4
