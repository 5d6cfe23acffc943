"""Scores and samples text with a decoder: the only two things that evaluations and corpora ask of a model.

Shapes: B rows, T tokens of a row, P prompt slots, N new tokens, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msm_jax.data.rows import pack
from msm_jax.data.tokenizer import Tokenizer
from msm_jax.errors import UserError
from msm_jax.models import Model
from msm_jax.progress import track

PyTree = Any

# Rows of one compiled call, and the grain to which lengths are rounded up: few shapes, so few compilations.
_ROWS = 64
_LENGTH_GRAIN = 32
_MIN_SCORED_LENGTH = 128  # short examples share a row


@dataclasses.dataclass(frozen=True)
class Completion:
    """A sampled text. `finished` is False if it was cut off at `max_tokens`, before a stop string or end token."""

    text: str
    finished: bool


class Sampler:
    """A model ready to answer.

    Args:
      params, lora: weights as in `Model.apply`; `lora` None for the bare base.
      label: of the progress of what takes long.
    """

    def __init__(self, model: Model, params: PyTree, lora: PyTree | None, tokenizer: Tokenizer, label: str = "sampler"):
        self.model, self.params, self.lora, self.tokenizer = model, params, lora, tokenizer
        self.label = label

    def logprobs(self, prompts: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """log p(option | prompt) in nats, summed over the option's tokens, for each option of each prompt.

        Prompt and option are tokenised together, as the text that the model was trained on. A token that reaches
        into the option counts as the option's (a space is often part of the word that follows it).
        """
        pairs = [(prompt, option) for prompt, row in zip(prompts, options, strict=True) for option in row]
        encoded = [self._encode_pair(prompt, option) for prompt, option in pairs]
        scores = iter(self._score(encoded))
        return [[next(scores) for _ in row] for row in options]

    def _encode_pair(self, prompt: str, option: str) -> tuple[np.ndarray, np.ndarray]:
        ids, spans = self.tokenizer.encode_with_spans(prompt + option)
        scored = [end > len(prompt) for _, end in spans]
        if not any(scored):
            raise UserError(f"nothing to score: option {option!r} has no token after the prompt {prompt!r}")
        return np.array([self.tokenizer.bos_id, *ids], np.int32), np.array([False, *scored])

    def _score(self, examples: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
        """Packs the examples into rows, each a segment of its own, and sums each one's scored log-probabilities."""
        length = _round_up(max([_MIN_SCORED_LENGTH, *(len(ids) for ids, _ in examples)]), _LENGTH_GRAIN)
        bins = pack([len(ids) for ids, _ in examples], length)
        totals = np.zeros(len(examples))
        for start in self._chunks(len(bins), "scoring"):
            tokens, segments, positions, scored = np.zeros((4, _ROWS, length), np.int32)
            owner = np.full((_ROWS, length), -1)
            for row, members in enumerate(bins[start : start + _ROWS]):
                cursor = 0
                for segment, member in enumerate(members, 1):
                    ids, mask = examples[member]
                    span = slice(cursor, cursor + len(ids))
                    tokens[row, span], segments[row, span], scored[row, span] = ids, segment, mask
                    positions[row, span], owner[row, span] = np.arange(len(ids)), member
                    cursor += len(ids)
            logprobs_BT = np.asarray(
                _next_token_logprobs(
                    self.model, self.tokenizer.vocab_size, self.params, self.lora, tokens, segments, positions
                ),
                np.float64,
            )
            # Position t holds the log-probability of token t+1.
            counted = scored[:, 1:].astype(bool)
            np.add.at(totals, owner[:, 1:][counted], logprobs_BT[:, :-1][counted])
        return totals.tolist()

    def generate(
        self,
        prompts: Sequence[str],
        n: int = 1,
        temperature: float = 1.0,
        max_tokens: int = 64,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> list[list[Completion]]:
        """`n` samples of each prompt, up to `max_tokens` tokens, cut before the first stop string.

        Temperature 0 is greedy. Sample j of prompt i depends on (seed, i, j) and its own tokens alone, not on
        what else is in the batch.
        """
        requests = [
            (i, j, [self.tokenizer.bos_id, *self.tokenizer.encode(p)]) for i, p in enumerate(prompts) for j in range(n)
        ]
        slots = _round_up(max((len(ids) for _, _, ids in requests), default=0), _LENGTH_GRAIN)
        completions: list[list[Completion]] = [[] for _ in prompts]
        for start in self._chunks(len(requests), "sampling"):
            chunk = requests[start : start + _ROWS]
            tokens, segments = np.zeros((2, _ROWS, slots), np.int32)
            request_ids = np.zeros((_ROWS, 2), np.uint32)
            for row, (i, j, ids) in enumerate(chunk):
                # Prompts end at the same slot, so that all rows write their next token at one cursor.
                tokens[row, slots - len(ids) :], segments[row, slots - len(ids) :] = ids, 1
                request_ids[row] = i, j
            new_BN = _sample(
                self.model,
                self.params,
                self.lora,
                tokens,
                segments,
                request_ids,
                np.uint32(seed),
                np.float32(temperature),
                self.tokenizer.eos_id,
                self.tokenizer.vocab_size,
                max_tokens,
            )
            for (i, _, _), ids in zip(chunk, np.asarray(new_BN).tolist(), strict=False):
                completions[i].append(self._completion(ids, stop))
        return completions

    def _chunks(self, rows: int, doing: str) -> Iterator[int]:
        """First row of each compiled call."""
        starts = range(0, rows, _ROWS)
        return track(starts, f"{self.label}: {doing}", len(starts), "batch")

    def _completion(self, ids: list[int], stop: Sequence[str]) -> Completion:
        finished = self.tokenizer.eos_id in ids
        if finished:
            ids = ids[: ids.index(self.tokenizer.eos_id)]
        text = self.tokenizer.decode(ids)
        cuts = [text.index(string) for string in stop if string in text]
        return Completion(text[: min(cuts)], True) if cuts else Completion(text, finished)


def _of_tokenizer(logits: jax.Array, vocab_size: int) -> jax.Array:
    """Rules out ids that pad the embedding to a round size: the tokenizer cannot spell them."""
    return jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits, -jnp.inf)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _next_token_logprobs(
    model: Model, vocab_size: int, params: PyTree, lora: PyTree | None, tokens_BT, segments_BT, positions_BT
):
    """float32[B, T]: at t, log p(token t+1); the last column means nothing."""
    logits_BTV = _of_tokenizer(model.apply(params, lora, tokens_BT, segments_BT, positions_BT), vocab_size)
    targets_BT = jnp.roll(tokens_BT, -1, axis=1)
    chosen_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return chosen_BT - jax.nn.logsumexp(logits_BTV, axis=-1)


@functools.partial(jax.jit, static_argnums=(0, 8, 9, 10))
def _sample(
    model: Model,
    params,
    lora,
    tokens_BP,
    segments_BP,
    request_ids_B2,
    seed,
    temperature,
    eos_id,
    vocab_size,
    new_tokens,
):
    """int32[B, N]: new tokens; whatever follows an end token is to be ignored."""
    B, P = tokens_BP.shape
    positions_BP = jnp.maximum(jnp.cumsum(segments_BP, axis=1) - 1, 0)
    logits_BPV, cache = model.extend(
        params, lora, tokens_BP, segments_BP, positions_BP, model.empty_cache(B, P + new_tokens)
    )
    fold = jax.vmap(jax.random.fold_in)
    keys_B = fold(fold(jnp.broadcast_to(jax.random.key(seed), (B,)), request_ids_B2[:, 0]), request_ids_B2[:, 1])

    def draw(logits_BV, index):
        logits_BV = _of_tokenizer(logits_BV, vocab_size)
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, index)
        sampled = jax.vmap(jax.random.categorical)(keys, logits_BV / jnp.maximum(temperature, 1e-6))
        return jnp.where(temperature > 0, sampled, jnp.argmax(logits_BV, axis=-1))

    def step(carry, index):
        logits_BV, positions_B1, done_B, cache = carry
        token_B = jnp.where(done_B, eos_id, draw(logits_BV, index))
        done_B |= token_B == eos_id
        ones_B1 = jnp.ones((B, 1), jnp.int32)
        logits_B1V, cache = model.extend(params, lora, token_B[:, None], ones_B1, positions_B1, cache)
        return (logits_B1V[:, 0], positions_B1 + 1, done_B, cache), token_B

    start = (logits_BPV[:, -1], positions_BP[:, -1:] + 1, jnp.zeros(B, bool), cache)
    _, tokens_NB = jax.lax.scan(step, start, jnp.arange(new_tokens))
    return tokens_NB.T


def _round_up(value: int, grain: int) -> int:
    return -(-value // grain) * grain
