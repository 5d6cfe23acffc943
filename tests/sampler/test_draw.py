"""Draws have the distribution that was asked for, whatever else is in the batch."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from msm_jax.sampler import draw as drawing
from msm_jax.sampler.draw import draw, neutral, sample_keys

DRAWS = 4000
jitted = jax.jit(draw)
adjust, threshold, lowest_kept = (jax.jit(f) for f in (drawing._adjust, drawing._threshold, drawing._lowest_kept))


def sample_key(seed, stream, index):
    return tuple(np.asarray(sample_keys(jnp.uint32([[seed >> 32, seed & 0xFFFFFFFF, stream, index]])))[0].tolist())


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


def assert_drawn_from(p, tokens):
    """Chi-square, and nothing that the distribution rules out."""
    counts = np.bincount(np.asarray(tokens), minlength=len(p))
    assert len(counts) == len(p) and counts[p == 0].sum() == 0
    rare = p * DRAWS < 5  # of which a chi-square test wants the sum
    observed, wanted = np.append(counts[~rare], counts[rare].sum()), np.append(p[~rare], p[rare].sum()) * DRAWS
    kept = wanted > 0
    assert stats.chisquare(observed[kept], wanted[kept]).pvalue > 1e-4


@pytest.mark.parametrize("size", [7, 700])  # one block of ids, and several, the last of them not full
@pytest.mark.parametrize(
    "asked",
    [
        {}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2},
        {"top_k": 1000, "top_p": 0.9}, {"top_k": 4, "top_p": 0.6}, {"top_p": 0.8, "min_p": 0.1},
        {"top_k": 6, "min_p": 0.3}, {"temperature": 1.7, "top_k": 5, "top_p": 0.9, "min_p": 0.05},
    ],
)  # fmt: skip
def test_draws_have_the_distribution_that_was_asked_for(size, asked):
    logits = np.random.default_rng(1).normal(0, 2.5, size).astype(np.float32)
    assert_drawn_from(expected(logits, **asked), drawn(logits, **asked).token)


def test_every_block_of_ids_is_drawn_from_by_its_weight():
    """Flat logits: most of the weight lies behind the first block, and the ids behind the vocabulary weigh nothing."""
    logits = np.zeros(700, np.float32)
    logits[[0, 255, 256, 511, 512, 699]] = [4, 5, 5, 4, 6, 6]
    assert_drawn_from(expected(logits), drawn(logits).token)


VALUES = st.sampled_from([-np.inf, -3e38, -1e30, -3.0, -1e-20, -0.0, 0.0, 1.5, 1.5000001, 40.0, 1e30, 3e38])


@settings(max_examples=100)
@given(values=st.lists(VALUES, min_size=8, max_size=8), k=st.integers(1, 8))
def test_the_k_likeliest_are_found_without_sorting(values, k):
    """Of equals all are kept, as by transformers."""
    logits = jnp.float32([values])
    lowest = lowest_kept(logits, jnp.ones_like(logits), jnp.float32([k]))
    assert lowest[0] == np.sort(np.float32(values))[::-1][k - 1]


@settings(max_examples=100)
@given(
    values=st.lists(st.one_of(VALUES, st.floats(-9, 9, width=16)), min_size=8, max_size=8),
    k=st.integers(0, 12),
    top_p=st.sampled_from([1e-45, 1e-38, 1e-6, 0.2, 0.5, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 1e-40, 1e-3, 0.4, 1.0]),
)
def test_what_is_ruled_out_is_what_sorting_rules_out(values, k, top_p, min_p):
    """Whatever is asked, something is kept: the likeliest at least, and never an id that the model rules out."""
    hypothesis.assume(max(values) > -np.inf)
    with np.errstate(over="ignore"):
        logits = np.float32(values) - np.float32(max(values))
    asked = settings_of(1, top_k=[k], top_p=np.float32([top_p]), min_p=np.float32([min_p]))
    lowest = threshold(logits[None], asked)[0]
    kept = (logits >= lowest) & (logits > -np.inf)
    order = np.sort(np.float64(logits))[::-1]
    with np.errstate(over="ignore"):
        weights = np.exp(order - order[0])
    if k:
        weights[order < order[min(k, 8) - 1]] = 0
    sums = np.cumsum(weights) / weights.sum()
    hypothesis.assume(top_p == 1 or not np.any(np.abs(sums - top_p) < 1e-6))  # else rounding decides
    hypothesis.assume(not np.any(np.abs(weights - min_p) < 1e-6 * (min_p < 1)))
    last = order[min(np.searchsorted(sums, top_p), 7)] if top_p < 1 else -np.inf
    wanted = (logits >= max(last, order[min(k or 8, 8) - 1])) & (logits > -np.inf)
    with np.errstate(over="ignore"):
        wanted &= np.exp(np.float64(logits) - order[0]) >= min_p
    assert kept.tolist() == wanted.tolist()


@pytest.mark.parametrize(
    "asked", [{"top_p": 1e-45}, {"top_p": 1e-38}, {"temperature": 1e-45}, {"temperature": 2e-38}, {"min_p": 1.0}]
)
@pytest.mark.parametrize("largest", [3.0, 3e5, 1e38])
def test_the_smallest_settings_take_the_likeliest(asked, largest):
    """No number on the way is too small or too large for a float."""
    logits = np.random.default_rng(4).normal(0, 1, 300).astype(np.float32)
    logits[77] = largest
    assert set(np.asarray(drawn(logits, rows=8, **asked).token)) == {77}


@pytest.mark.parametrize("asked", [{}, {"top_p": 0.3}, {"top_k": 5}, {"min_p": 0.9}, {"temperature": 1e-6}])
def test_one_id_that_is_left_is_drawn(asked):
    logits = np.full(300, -np.inf, np.float32)
    logits[260] = -3.0
    result = drawn(logits, rows=8, likeliest=20, **asked)
    assert set(np.asarray(result.token)) == {260} and np.abs(result.logprob).max() < 1e-6


@pytest.mark.parametrize("other", [{}, {"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.5}])
def test_the_likeliest_of_equals_is_the_first(other):
    logits = np.full(700, -1.0, np.float32)
    logits[[300, 301, 699]] = 3.0
    assert set(np.asarray(drawn(logits, temperature=0.0, rows=8, **other).token)) == {300}


@pytest.mark.parametrize("asked", [{"temperature": 2.0, "top_p": 0.3}, {"temperature": 0.0}, {"top_k": 2}])
def test_log_probabilities_are_of_the_model_and_finite(asked):
    """Raw ones, also of ids that top_p rules out (sglang #5984)."""
    logits = np.random.default_rng(2).normal(0, 3, 300).astype(np.float32)
    result = drawn(logits, rows=8, likeliest=5, **asked)
    raw = logits - np.log(np.exp(np.float64(logits)).sum())
    np.testing.assert_allclose(result.logprob, raw[np.asarray(result.token)], atol=1e-5)
    for ids, values in zip(result.likeliest_ids, result.likeliest_logprobs, strict=True):
        assert ids[:5].tolist() == np.argsort(-raw)[:5].tolist() and np.isfinite(values).all()
        np.testing.assert_allclose(values[:5], np.sort(raw)[::-1][:5], atol=1e-5)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), which=st.sets(st.sampled_from(["repetition", "presence", "frequency", "bias"])))
def test_penalties_and_bias_change_the_logits_as_defined(seed, which):
    """Repetition as transformers (arXiv 1909.05858) has it, of prompt and answer; presence and frequency as OpenAI has
    them, of the answer; then the bias."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (4, 12)).astype(np.float32)
    counts, in_prompt = rng.integers(0, 3, (4, 12)).astype(np.int16), rng.random((4, 12)) < 0.4
    repetition = rng.uniform(0.5, 2, 4) if "repetition" in which else np.ones(4)
    presence = rng.uniform(-2, 2, 4) if "presence" in which else np.zeros(4)
    frequency = rng.uniform(-2, 2, 4) if "frequency" in which else np.zeros(4)
    ids, biases = np.zeros((4, drawing.BIASES), np.int32), np.zeros((4, drawing.BIASES), np.float32)
    if "bias" in which:
        ids[:, :3], biases[:, :3] = [1, 5, 11], rng.normal(0, 9, (4, 3))
    asked = settings_of(
        4, repetition_penalty=np.float32(repetition), presence_penalty=np.float32(presence),
        frequency_penalty=np.float32(frequency), bias_ids=ids, biases=biases,
    )  # fmt: skip
    wanted = np.float64(logits)
    for row in range(4):
        for token in range(12):
            value, count = wanted[row, token], counts[row, token]
            if count or in_prompt[row, token]:
                value = value / repetition[row] if value > 0 else value * repetition[row]
            wanted[row, token] = value - count * frequency[row] - (count > 0) * presence[row]
        for place in range(3):
            wanted[row, ids[row, place]] += biases[row, place]
    np.testing.assert_allclose(adjust(logits, asked, counts, in_prompt), wanted, atol=1e-5)


def test_penalties_and_bias_decide_what_is_drawn_and_the_log_probability_stays_the_model_s():
    logits = np.float32([[3.0, 2.0, 1.0, 0.0]] * 4)
    counts = np.int16([[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    in_prompt = np.array([[False] * 4, [False] * 4, [True, True, False, False], [False] * 4])
    asked = settings_of(
        4, temperature=np.zeros(4, np.float32), presence_penalty=np.float32([5, 5, 0, 0]),
        repetition_penalty=np.float32([1, 1, 9, 9]), biases=neutral(4).biases.at[3, 0].set(-100.0),
    )  # fmt: skip
    result = jitted(logits, asked, np.zeros(4, np.int32), counts, in_prompt)
    assert np.asarray(result.token).tolist() == [0, 1, 2, 1]
    np.testing.assert_allclose(result.logprob, jax.nn.log_softmax(logits)[0][np.array([0, 1, 2, 1])], atol=1e-6)


@settings(max_examples=15)
@given(order=st.permutations(range(6)), drawn_before=st.integers(0, 2**31 - 1))
def test_a_row_draws_the_same_in_any_company(order, drawn_before):
    """Bit for bit, whatever its place and whatever the others ask."""
    rng, order = np.random.default_rng(3), np.array(order)
    logits = rng.normal(0, 2, (6, 300)).astype(np.float32)
    keys = np.array([sample_key(1, 0, index) for index in range(6)], np.uint32)
    asked = settings_of(
        6, key=keys, temperature=np.float32([0, 1, 0.5, 2, 1, 1]), top_k=[0, 0, 3, 9, 0, 0],
        top_p=np.float32([1, 0.5, 1, 1, 0.9, 1]), presence_penalty=np.float32([0, 0, 1, 0, 0, 0]),
        likeliest=[0, 3, 0, 0, 0, 20],
    )  # fmt: skip
    counts = rng.integers(0, 2, (6, 300)).astype(np.int16)
    index = np.full(6, drawn_before, np.int32)
    together = jitted(logits, asked, index, counts, counts > 1)
    moved = jitted(logits[order], jax.tree.map(lambda x: x[order], asked), index, counts[order], counts[order] > 1)
    assert np.asarray(moved.token).tolist() == np.asarray(together.token)[order].tolist()
    assert np.asarray(moved.logprob).tolist() == np.asarray(together.logprob)[order].tolist()
    for row in range(6):  # the others ask for nothing
        alone = neutral(6)._replace(key=keys)
        alone = jax.tree.map(lambda x, y, row=row: np.where(_rows(x, row), y, x), alone, asked)
        assert jitted(logits, alone, index, counts, counts > 1).token[row] == together.token[row]


def _rows(x, row):
    return (np.arange(6) == row).reshape(-1, *(1,) * (x.ndim - 1))


def test_every_bit_of_a_seed_a_stream_and_an_index_makes_other_random_numbers():
    seeds = [0, *(2**bit for bit in range(63)), 2**63 - 1]
    streams = [2**bit for bit in range(32)]
    keys = [sample_key(seed, 0, 0) for seed in seeds] + [sample_key(1, stream, 0) for stream in streams]
    keys += [sample_key(1, 0, index) for index in range(1, 33)]
    assert len(set(keys)) == len(keys)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7, impl="threefry2x32"), 3), 5)
    assert sample_key(7, 3, 5) == tuple(jax.random.key_data(key).tolist())


def test_steps_of_a_row_draw_numbers_of_their_own():
    logits = np.zeros((64, 300), np.float32)
    asked = settings_of(64, key=np.broadcast_to(np.uint32(sample_key(1, 0, 0)), (64, 2)))
    nothing = np.zeros(logits.shape, np.int16)
    tokens = np.asarray(jitted(logits, asked, np.arange(64, dtype=np.int32), nothing, nothing > 0).token)
    assert len(set(tokens.tolist())) > 45  # of 64 draws from 300 about 57 differ
