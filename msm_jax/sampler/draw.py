"""Logits to the next token of each row, and its log-probabilities. All settings are arrays, so that one compiled
program serves every temperature, penalty and seed.

No vocabulary is sorted: a token is found by inversion, over blocks of ids and then within one of them; and what top-k
and top-p rule out lies below a threshold that is found bit by bit.

Shapes: B rows, V vocabulary, N bias entries of a row, K likeliest ids.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

LIKELIEST = 20  # log-probabilities beside the sampled one, at most: as many as OpenAI gives
BIASES = 64  # ids of a row's logit bias, at most
_BLOCK = 256  # ids that share one number of the first step of the inversion


class Settings(NamedTuple):
    """How each row samples; a row that asks for nothing has the values of `neutral`."""

    temperature: jax.Array  # float32[B], 0: the likeliest token, of equals the one of the lowest id
    top_k: jax.Array  # int32[B], 0: all
    top_p: jax.Array  # float32[B]
    min_p: jax.Array  # float32[B]
    repetition_penalty: jax.Array  # float32[B], of ids in prompt and answer (arXiv 1909.05858)
    presence_penalty: jax.Array  # float32[B], of ids in the answer, as OpenAI defines both
    frequency_penalty: jax.Array  # float32[B]
    bias_ids: jax.Array  # int32[B, N]
    biases: jax.Array  # float32[B, N], added to the logits of these ids; 0 for what is not used
    key: jax.Array  # uint32[B, 2], of the sample: see `sample_keys`
    likeliest: jax.Array  # int32[B], how many of the likeliest ids are wanted


class Drawn(NamedTuple):
    """Log-probabilities are of the model's own distribution, before bias, penalties and temperature; in nats."""

    token: jax.Array  # int32[B]
    logprob: jax.Array  # float32[B]
    likeliest_ids: jax.Array  # int32[B, K]
    likeliest_logprobs: jax.Array  # float32[B, K]


def neutral(rows: int) -> Settings:
    """Settings that change nothing, at temperature 1."""
    zeros, ones = jnp.zeros(rows, jnp.float32), jnp.ones(rows, jnp.float32)
    ids = jnp.zeros(rows, jnp.int32)
    many = (rows, BIASES)
    return Settings(
        ones, ids, ones, zeros, ones, zeros, zeros, jnp.zeros(many, jnp.int32), jnp.zeros(many, jnp.float32),
        jnp.zeros((rows, 2), jnp.uint32), ids,
    )  # fmt: skip


def draw(
    logits_BV: jax.Array, settings: Settings, index_B: jax.Array, counts_BV: jax.Array, in_prompt_BV: jax.Array
) -> Drawn:
    """Draws the next token of each row.

    Args:
      logits_BV: float32; -inf for ids that the tokenizer cannot spell.
      index_B: int32, tokens that the row has drawn before.
      counts_BV: int, how often it has drawn each id.
      in_prompt_BV: bool, whether the id is in its prompt.
    """
    normaliser_B1 = jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)
    adjusted_BV = _adjust(logits_BV, settings, counts_BV, in_prompt_BV)
    greedy_B = settings.temperature <= 0
    # Of the largest first: what a small temperature would make of logits is no float.
    below_BV = adjusted_BV - jnp.max(adjusted_BV, axis=-1, keepdims=True)
    tempered_BV = below_BV / jnp.where(greedy_B, 1.0, settings.temperature)[:, None]
    limited = (settings.top_k > 0) | (settings.top_p < 1) | (settings.min_p > 0)
    lowest_B = jax.lax.cond(
        jnp.any(limited & ~greedy_B), _threshold, lambda x, _: jnp.full(len(x), -jnp.inf), tempered_BV, settings
    )
    drawn_B = _invert(tempered_BV, lowest_B, _uniforms(settings.key, index_B))
    token_B = jnp.where(greedy_B, jnp.argmax(adjusted_BV, axis=-1), drawn_B).astype(jnp.int32)
    logprob_B = (jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1) - normaliser_B1)[:, 0]
    K = min(LIKELIEST, logits_BV.shape[-1])
    values_BK, ids_BK = jax.lax.cond(
        jnp.any(settings.likeliest > 0),
        lambda x: tuple(jax.lax.top_k(x, K)),
        lambda x: (jnp.zeros((len(x), K), x.dtype), jnp.zeros((len(x), K), jnp.int32)),
        logits_BV,
    )
    return Drawn(token_B, logprob_B, ids_BK, values_BK - normaliser_B1)


def sample_keys(origin_B4: jax.Array) -> jax.Array:
    """uint32[B, 2] that all random numbers of a sample come from. `origin_B4`: uint32, the upper and the lower half of
    the seed, the stream of the request and the index of the sample in it."""

    def of_sample(origin_4):
        # Of all 64 bits: `jax.random.key` takes the lower 32 of a number.
        key = jax.random.wrap_key_data(origin_4[:2], impl="threefry2x32")
        return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, origin_4[2]), origin_4[3]))

    return jax.vmap(of_sample)(origin_B4)


def _uniforms(key_B2: jax.Array, index_B: jax.Array) -> jax.Array:
    """Two numbers of [0, 1) for each row, float32[B, 2]."""

    def of_row(key_2, index):
        key = jax.random.fold_in(jax.random.wrap_key_data(key_2, impl="threefry2x32"), index)
        return jax.random.uniform(key, (2,))

    return jax.vmap(of_row)(key_B2, index_B)


def _adjust(logits_BV, settings: Settings, counts_BV, in_prompt_BV) -> jax.Array:
    """Logits with penalties and bias. Most batches ask for neither, and then nothing is read."""

    def penalise(logits_BV):
        penalty_B1 = settings.repetition_penalty[:, None]
        seen_BV = in_prompt_BV | (counts_BV > 0)
        repeated_BV = jnp.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
        logits_BV = jnp.where(seen_BV, repeated_BV, logits_BV)
        times_BV = counts_BV.astype(jnp.float32)
        logits_BV -= settings.frequency_penalty[:, None] * times_BV
        return logits_BV - settings.presence_penalty[:, None] * (counts_BV > 0)

    def bias(logits_BV):
        return logits_BV.at[jnp.arange(len(logits_BV))[:, None], settings.bias_ids].add(settings.biases)

    penalised = jnp.any(
        (settings.repetition_penalty != 1) | (settings.presence_penalty != 0) | (settings.frequency_penalty != 0)
    )
    logits_BV = jax.lax.cond(penalised, penalise, lambda x: x, logits_BV)
    return jax.lax.cond(jnp.any(settings.biases != 0), bias, lambda x: x, logits_BV)


def _threshold(logits_BV: jax.Array, settings: Settings) -> jax.Array:
    """The smallest logit that each row keeps, float32[B]: of those of the k likeliest, those that first reach the
    probability `top_p` among them (arXiv 1904.09751), and those of at least `min_p` times the likeliest's probability
    (arXiv 2407.01082), in this order. Of equal logits all are kept. The largest logit of each row is 0."""
    vocabulary = logits_BV.shape[-1]
    k_B = jnp.where(settings.top_k > 0, jnp.minimum(settings.top_k, vocabulary), vocabulary)
    lowest_B = _lowest_kept(logits_BV, jnp.ones_like(logits_BV), k_B.astype(jnp.float32))
    weights_BV = jnp.where(logits_BV >= lowest_B[:, None], jnp.exp(logits_BV), 0.0)
    total_B = weights_BV.sum(axis=-1)
    nucleus_B = _lowest_kept(logits_BV, weights_BV, settings.top_p * total_B)
    lowest_B = jnp.where(settings.top_p < 1, jnp.maximum(lowest_B, nucleus_B), lowest_B)
    # A `top_p` that is no float of full precision counts as 0, which nothing needs to reach.
    return jnp.minimum(jnp.maximum(lowest_B, jnp.log(settings.min_p)), 0.0)


def _lowest_kept(logits_BV: jax.Array, weights_BV: jax.Array, wanted_B: jax.Array) -> jax.Array:
    """The largest logit such that those of at least its size weigh `wanted_B` together. Found from the highest bit of
    the float to the lowest."""

    def set_bit(bit, lowest_B):
        tried_B = lowest_B | (jnp.uint32(1) << (31 - bit).astype(jnp.uint32))
        weight_B = jnp.sum(weights_BV, axis=-1, where=logits_BV >= _float_of(tried_B)[:, None])
        return jnp.where(weight_B >= wanted_B, tried_B, lowest_B)

    return _float_of(jax.lax.fori_loop(0, 32, set_bit, jnp.zeros(len(logits_BV), jnp.uint32)))


def _float_of(order: jax.Array) -> jax.Array:
    """The float32 numbers that stand in the order of these uint32: what is no number becomes -inf or inf."""
    bits = jnp.where(order >> 31 == 1, order ^ jnp.uint32(1 << 31), ~order)
    value = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(jnp.isnan(value), jnp.where(order >> 31 == 1, jnp.inf, -jnp.inf), value)


def _invert(logits_BV: jax.Array, lowest_B: jax.Array, uniform_B2: jax.Array) -> jax.Array:
    """The token at which the sum of probabilities first exceeds a uniform number. The first number chooses a block of
    ids, the second an id in it, so that neither sum is long: a float32 sum over the vocabulary would lose the tail. The
    largest logit of each row is 0."""
    weights_BV = jnp.where(logits_BV >= lowest_B[:, None], jnp.exp(logits_BV), 0.0)
    B, V = weights_BV.shape
    size = min(_BLOCK, V)
    blocks_BNS = jnp.pad(weights_BV, ((0, 0), (0, -V % size))).reshape(B, -1, size)
    block_B = _first_above(blocks_BNS.sum(axis=-1), uniform_B2[:, 0])
    within_BS = jnp.take_along_axis(blocks_BNS, block_B[:, None, None], axis=1)[:, 0]
    return block_B * size + _first_above(within_BS, uniform_B2[:, 1])


def _first_above(weights_BN: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """The first place where the sum of the weights up to it exceeds this part of their whole, int32[B]; never one of
    weight zero."""
    sums_BN = jnp.cumsum(weights_BN, axis=-1)
    above_BN = (sums_BN > uniform_B[:, None] * sums_BN[:, -1:]) & (weights_BN > 0)
    # By rounding no sum may exceed it: then it is the last place that weighs anything.
    last_B = weights_BN.shape[-1] - 1 - jnp.argmax(weights_BN[:, ::-1] > 0, axis=-1)
    return jnp.where(above_BN.any(axis=-1), jnp.argmax(above_BN, axis=-1), last_B).astype(jnp.int32)
