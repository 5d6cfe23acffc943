"""Draws have the distribution that was asked for, whatever else is in the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from msm_jax.sampler import draw as drawing
from msm_jax.sampler.draw import draw, neutral, sample_key

DRAWS = 4000
jitted = jax.jit(draw)


def settings_of(rows, **values):
    return neutral(rows)._replace(**{name: jnp.asarray(value) for name, value in values.items()})


def drawn(logits, rows=DRAWS, seed=0, **values):
    """`rows` draws from the same logits, each with a key of its own."""
    keys = jnp.array(np.random.default_rng(seed).integers(0, 2**32, (rows, 2), dtype=np.uint32))
    wide = {name: np.full(rows, value, np.asarray(getattr(neutral(1), name)).dtype) for name, value in values.items()}
    batch = jnp.broadcast_to(jnp.float32(logits), (rows, len(logits)))
    nothing = jnp.zeros(batch.shape, jnp.int16)
    return jitted(batch, settings_of(rows, key=keys, **wide), jnp.zeros(rows, jnp.int32), nothing, nothing > 0)


def expected(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The distribution, by sorting."""
    scaled = np.float64(logits) / temperature
    p = np.exp(scaled - scaled.max())
    if top_k:
        p[scaled < np.sort(scaled)[::-1][min(top_k, len(p)) - 1]] = 0
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= top_p]] = 0
    p[p < min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize("size", [7, 700])  # one block of ids, and several, the last of them not full
@pytest.mark.parametrize(
    "asked",
    [
        {}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2},
        {"temperature": 1.7, "top_k": 5, "top_p": 0.9, "min_p": 0.05},
    ],
)  # fmt: skip
def test_draws_have_the_distribution_that_was_asked_for(size, asked):
    logits = np.random.default_rng(1).normal(0, 2.5, size).astype(np.float32)
    p = expected(logits, **asked)
    counts = np.bincount(np.asarray(drawn(logits, **asked).token), minlength=size)
    assert counts[p == 0].sum() == 0
    rare = p * DRAWS < 5  # of which a chi-square test wants the sum
    observed, wanted = np.append(counts[~rare], counts[rare].sum()), np.append(p[~rare], p[rare].sum()) * DRAWS
    kept = wanted > 0
    assert stats.chisquare(observed[kept], wanted[kept]).pvalue > 1e-4


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(
        st.sampled_from([-np.inf, -1e30, -3.0, -0.0, 0.0, 1.5, 1.5000001, 40.0, 1e30]), min_size=8, max_size=8
    ),
    k=st.integers(1, 12),
)
def test_the_k_likeliest_are_found_without_sorting(values, k):
    logits = jnp.float32([values])
    lowest = drawing._lowest_kept(logits, jnp.ones_like(logits), jnp.float32([min(k, 8)]))
    kept = jax.jit(jnp.greater_equal)(logits, lowest[:, None])[0]  # by XLA, to which denormal numbers are 0
    assert (
        np.asarray(kept).tolist() == (np.float32(values) >= np.sort(np.float32(values))[::-1][min(k, 8) - 1]).tolist()
    )


def test_the_likeliest_of_equals_is_the_first():
    assert set(np.asarray(drawn([1.0, 3.0, 3.0, -np.inf], temperature=0.0, rows=8).token)) == {1}


def test_log_probabilities_are_of_the_model_and_finite():
    logits = np.random.default_rng(2).normal(0, 3, 40).astype(np.float32)
    result = drawn(logits, rows=64, temperature=2.0, top_p=0.3, likeliest=5)
    raw = logits - np.log(np.exp(np.float64(logits)).sum())
    np.testing.assert_allclose(result.logprob, raw[np.asarray(result.token)], atol=1e-5)
    np.testing.assert_allclose(result.likeliest_logprobs[0, :5], np.sort(raw)[::-1][:5], atol=1e-5)


def test_penalties_and_bias_change_the_logits_as_defined():
    """As OpenAI has presence and frequency, and arXiv 1909.05858 repetition."""
    logits, counts = jnp.float32([[2.0, -1.0, 0.5, 0.0]]), jnp.int16([[2, 1, 0, 0]])
    in_prompt = jnp.array([[False, False, True, False]])
    asked = settings_of(1, repetition_penalty=[2.0], presence_penalty=[0.25], frequency_penalty=[0.5])
    asked = asked._replace(bias_ids=asked.bias_ids.at[0, 0].set(3), biases=asked.biases.at[0, 0].set(7.0))
    found = drawing._adjust(logits, asked, counts, in_prompt)
    np.testing.assert_allclose(found, [[1.0 - 1.0 - 0.25, -2.0 - 0.5 - 0.25, 0.25, 7.0]])


def test_a_row_draws_the_same_in_any_company():
    logits = np.random.default_rng(3).normal(0, 2, (5, 300)).astype(np.float32)
    keys = jnp.array([sample_key(1, 0, index) for index in range(5)], jnp.uint32)
    nothing = jnp.zeros(logits.shape, jnp.int16)
    result = jitted(jnp.array(logits), settings_of(5, key=keys), jnp.arange(5), nothing, nothing > 0)
    order = np.array([3, 1, 4, 0, 2])
    again = jitted(
        jnp.array(logits[order]), settings_of(5, key=keys[order]), jnp.arange(5)[order], nothing, nothing > 0
    )
    assert np.asarray(again.token).tolist() == np.asarray(result.token)[order].tolist()
    assert len(set(map(tuple, np.asarray(keys).tolist()))) == 5
