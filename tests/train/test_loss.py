"""Which tokens are targets, and that packing changes neither their losses nor the gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msm_jax.data.rows import pack
from msm_jax.models import DecoderConfig, Model
from msm_jax.train.step import microbatch_loss, targets_and_weights

ROWS, TOKENS, VOCABULARY = 6, 12, 11


def test_targets_end_with_their_segment_and_the_mask_is_of_targets():
    """Whatever the mask says: the first token of a segment, padding, and what follows the row are no targets. And
    mask[i] is about predicting token i, which happens at position i - 1."""
    tokens = np.array([[5, 6, 7, 8, 9, 0, 0], [1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6]], np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 2], [1] * 7], np.int32)
    mask = np.array([[1] * 7, [1] * 7, [1, 0, 1, 0, 0, 1, 0]], bool)
    targets, weights = targets_and_weights(tokens, segments, mask)
    assert weights.dtype == jnp.float32
    np.testing.assert_array_equal(weights, [[1, 1, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0], [0, 1, 0, 0, 1, 0, 0]])
    np.testing.assert_array_equal(targets[:, :-1], tokens[:, 1:])


def rows_of(documents, bins):
    """[ROWS, TOKENS] arrays in which the documents of each bin share a row, and the document of every token, or -1."""
    batch = {name: np.zeros((ROWS, TOKENS), np.int32) for name in ("tokens", "segments", "positions")}
    batch |= {"mask": np.zeros((ROWS, TOKENS), bool), "source": np.zeros(ROWS, np.int32)}
    owner = np.full((ROWS, TOKENS), -1)
    for row, members in enumerate(bins):
        cursor = 0
        for segment, member in enumerate(members, 1):
            tokens, mask = documents[member]
            span = (row, slice(cursor, cursor + len(tokens)))
            batch["tokens"][span], batch["mask"][span], batch["segments"][span] = tokens, mask, segment
            batch["positions"][span], owner[span] = np.arange(len(tokens)), member
            cursor += len(tokens)
    return batch, owner


@pytest.fixture(scope="module")
def evaluate():
    """batch -> (gradient of the loss sum, its counts, float32[ROWS, TOKENS] losses of targets)."""
    config = DecoderConfig(
        vocab_size=VOCABULARY, num_layers=2, width=8, mlp_width=12, num_heads=2, num_kv_heads=1, head_size=4,
        dtype="float32",
    )  # fmt: skip
    model = Model(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.float32(rng.normal(0, 0.5, leaf.shape)), model.shapes)
    gradient = jax.grad(functools.partial(microbatch_loss, model), has_aux=True)

    @jax.jit
    def evaluate(batch):
        logits = model.apply(params, None, batch["tokens"], batch["segments"], batch["positions"])
        targets, weights = targets_and_weights(batch["tokens"], batch["segments"], batch["mask"])
        return *gradient(params, None, batch), optax.softmax_cross_entropy_with_integer_labels(
            logits, targets
        ) * weights

    return evaluate


@st.composite
def documents(draw):
    lengths = draw(st.lists(st.integers(1, TOKENS), min_size=1, max_size=ROWS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return [(rng.integers(1, VOCABULARY, n), rng.random(n) < 0.6) for n in lengths]


@settings(max_examples=20)
@given(documents())
def test_packing_changes_no_loss_and_no_gradient(evaluate, documents):
    alone, alone_owner = rows_of(documents, [[i] for i in range(len(documents))])
    packed, packed_owner = rows_of(documents, pack([len(tokens) for tokens, _ in documents], TOKENS))
    expected_gradient, (expected_counts, _), expected_losses = evaluate(alone)
    gradient, (counts, rows), losses = evaluate(packed)
    for document, (tokens, mask) in enumerate(documents):
        expected = expected_losses[alone_owner == document]
        assert expected.shape == tokens.shape and np.count_nonzero(expected) == mask[1:].sum()
        np.testing.assert_allclose(losses[packed_owner == document], expected, atol=1e-5)
    for name, count in expected_counts.items():
        np.testing.assert_allclose(counts[name], count, rtol=1e-5)
    np.testing.assert_allclose(rows["row_loss_sum"], losses.sum(axis=1), rtol=1e-5)
    assert counts["weight"] == sum(mask[1:].sum() for _, mask in documents)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), gradient, expected_gradient)
