"""Scores and samples text with a decoder: the only two things that evaluations and corpora ask of a model.

Shapes: B rows, T tokens of a row, P prompt slots, N new tokens, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from msm_jax.data.rows import pack
from msm_jax.data.tokenizer import Tokenizer
from msm_jax.errors import UserError
from msm_jax.models import Model
from msm_jax.parallel.hosts import fetch
from msm_jax.sampler.text import Continuation
from msm_jax.storage.progress import track

PyTree = Any

# Rows of one compiled call at most, and the grains to which rows and lengths are rounded up: few shapes, so few
# compilations.
_ROWS, _ROW_GRAIN = 64, 16
_LENGTH_GRAIN = 32
_MIN_SCORED_LENGTH = 128  # short examples share a row


class TokenLogprob(NamedTuple):
    """A sampled token, its log-probability in nats before temperature and top_p, and those of the likeliest ids."""

    id: int
    logprob: float
    likeliest: dict[int, float]


@dataclasses.dataclass(frozen=True)
class Completion:
    """A sampled text. `finished` is False if it was cut off at `max_tokens`, before a stop string or end token.

    `logprobs`, where asked for, holds the sampled tokens up to the end token; a stop string does not shorten it.
    `tokens` counts what was drawn, the end token and what follows a stop string with it.
    """

    text: str
    finished: bool
    logprobs: tuple[TokenLogprob, ...] | None = None
    tokens: int = dataclasses.field(default=0, compare=False)


class Sampler:
    """A model ready to answer.

    Args:
      params, lora: weights as in `Model.apply`; `lora` None for the bare base.
      label: of the progress of what takes long.
      bos, special: how prompts are tokenised, which their template says (data/chat.py): whether the tokenizer's bos
        is put before them, and whether control tokens are read out of the text.
      stop_ids: what ends an answer besides the tokenizer's end of a document (data/stops.py).
    """

    def __init__(
        self,
        model: Model,
        params: PyTree,
        lora: PyTree | None,
        tokenizer: Tokenizer,
        label: str = "sampler",
        bos: bool = True,
        special: bool = False,
        stop_ids: Sequence[int] = (),
    ):
        self.model, self.params, self.lora, self.tokenizer = model, params, lora, tokenizer
        self._stop_ids = {tokenizer.eos_id, *stop_ids}
        self.label = label
        self._start = [tokenizer.bos_id] if bos and tokenizer.bos_id is not None else []
        self._special = special

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
        ids, spans = self.tokenizer.encode_with_spans(prompt + option, special=self._special)
        scored = [end > len(prompt) for _, end in spans]
        if not any(scored):
            raise UserError(f"nothing to score: option {option!r} has no token after the prompt {prompt!r}")
        if scored[0] and not self._start:
            raise UserError(f"nothing before {option!r} to predict it from: the prompt has no token")
        return np.array([*self._start, *ids], np.int32), np.array([False] * len(self._start) + scored)

    def _score(self, examples: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
        """Packs the examples into rows, each a segment of its own, and sums each one's scored log-probabilities."""
        length, bins = _fewest_slots([len(ids) for ids, _ in examples])
        totals = np.zeros(len(examples))
        rows = _row_count(len(bins))
        for start in self._chunks(len(bins), "scoring"):
            tokens, segments, positions, scored = np.zeros((4, rows, length), np.int32)
            owner = np.full((rows, length), -1)
            for row, members in enumerate(bins[start : start + _ROWS]):
                cursor = 0
                for segment, member in enumerate(members, 1):
                    ids, mask = examples[member]
                    span = slice(cursor, cursor + len(ids))
                    tokens[row, span], segments[row, span], scored[row, span] = ids, segment, mask
                    positions[row, span], owner[row, span] = np.arange(len(ids)), member
                    cursor += len(ids)
            logprobs_BT = _next_token_logprobs(
                self.model, self.params, self.lora, tokens, segments, positions, self.tokenizer.vocab_size
            )
            logprobs_BT = fetch(logprobs_BT).astype(np.float64)
            # Position t holds the log-probability of token t+1.
            counted = scored[:, 1:].astype(bool)
            np.add.at(totals, owner[:, 1:][counted], logprobs_BT[:, :-1][counted])
        return totals.tolist()

    def encode(self, prompt: str) -> list[int]:
        """The ids that `generate` goes on from."""
        return [*self._start, *self.tokenizer.encode(prompt, special=self._special)]

    def generate(
        self,
        prompts: Sequence[str],
        n: int = 1,
        temperature: float = 1.0,
        max_tokens: int = 64,
        seed: int | Sequence[int] = 0,
        stop: Sequence[str] = (),
        top_p: float = 1.0,
        logprobs: int | None = None,
    ) -> list[list[Completion]]:
        """`n` samples of each prompt, up to `max_tokens` tokens, cut before the first stop string.

        A stop string that is a control token (`<|im_end|>`, also with white space beside it) stands for the token
        itself, which texts do not show.
        Temperature 0 is greedy. Sample j of prompt i depends on (seed, i, j) and its own tokens alone, not on
        what else is in the batch.

        Args:
          seed: or a list of them, one for each prompt, which then has the samples that it has alone with this seed.
          top_p: draw from the fewest tokens that have this much probability together (arXiv 1904.09751).
          logprobs: give the log-probability of each sampled token, and of this many of the likeliest; None: neither.

        Raises: UserError for a prompt without a token, and if a prompt and its answer do not fit the model's context;
            for an argument that is out of range, such as a stop string that holds a control token among other text.
        """
        _check_request(n, temperature, top_p, max_tokens, seed, stop, logprobs, self.tokenizer.vocab_size)
        strings, stop_ids = self._parse_stop(stop)
        one_seed = isinstance(seed, int | np.integer)
        if not one_seed and len(seed) != len(prompts):
            raise UserError(f"{len(seed)} seeds are given for {len(prompts)} prompts; give one, or one for each")
        requests = [(i, j, ids) for i, ids in enumerate(map(self.encode, prompts)) for j in range(n)]
        self._check_lengths([ids for _, _, ids in requests], max_tokens)
        slots = _round_up(max((len(ids) for _, _, ids in requests), default=0), _LENGTH_GRAIN)
        rows = _row_count(len(requests))
        completions: list[list[Completion]] = [[] for _ in prompts]
        for start in self._chunks(len(requests), "sampling"):
            chunk = requests[start : start + _ROWS]
            tokens, segments = np.zeros((2, rows, slots), np.int32)
            seeds, request_ids = np.zeros(rows, np.uint32), np.zeros((rows, 2), np.uint32)
            for row, (i, j, ids) in enumerate(chunk):
                # Prompts end at the same slot, so that all rows write their next token at one cursor.
                tokens[row, slots - len(ids) :], segments[row, slots - len(ids) :] = ids, 1
                seeds[row], request_ids[row] = (seed, (i, j)) if one_seed else (seed[i], (0, j))
            drawn = _sample(
                self.model,
                self.params,
                self.lora,
                tokens,
                segments,
                request_ids,
                seeds,
                np.float32(temperature),
                np.float32(top_p),
                stop_ids=stop_ids,
                vocab_size=self.tokenizer.vocab_size,
                new_tokens=max_tokens,
                likeliest=logprobs,
            )
            drawn = fetch(drawn)
            for row, (i, _, ids) in enumerate(chunk):
                of_row = jax.tree.map(lambda x, row=row: x[row], drawn)
                completions[i].append(self._completion(ids, of_row, strings, stop_ids))
        return completions

    def _parse_stop(self, stop: Sequence[str]) -> tuple[list[str], tuple[int, ...]]:
        """The stop strings that are looked for in the text, and all ids that end an answer."""
        control = self.tokenizer.special_tokens
        stop = [string.strip() if string.strip() in control else string for string in stop]
        strings = [string for string in stop if string not in control]
        for string in strings:
            if token := next((token for token in control if token in string), None):
                raise UserError(f"stop {string!r} holds the control token '{token}' among other text; give it alone")
        return strings, tuple(sorted(self._stop_ids | {control[string] for string in stop if string in control}))

    def _check_lengths(self, prompts: list[list[int]], max_tokens: int) -> None:
        if not all(prompts):
            raise UserError("a prompt has no token to go on from; give it a text")
        longest, limit = max(map(len, prompts), default=0), self.model.config.max_length
        if limit and longest + max_tokens > limit:
            raise UserError(
                f"a prompt of {longest} tokens and max_tokens={max_tokens} exceed the {limit} tokens that the model "
                "was made for; shorten one of the two"
            )

    def _chunks(self, rows: int, doing: str) -> Iterator[int]:
        """First row of each compiled call."""
        starts = range(0, rows, _ROWS)
        return track(starts, f"{self.label}: {doing}", len(starts), "batch")

    def _completion(
        self, prompt: list[int], drawn: "_Drawn", stop: Sequence[str], stop_ids: Sequence[int]
    ) -> Completion:
        ids = drawn.tokens.tolist()
        end = next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))
        continuation = Continuation(self.tokenizer, prompt, stop)
        text = continuation.add(ids[:end]) + continuation.end()
        logprobs = None
        if drawn.logprobs is not None:
            likeliest = [
                dict(zip(top_ids, values, strict=True))
                for top_ids, values in zip(drawn.likeliest_ids.tolist(), drawn.likeliest_logprobs.tolist(), strict=True)
            ]
            logprobs = tuple(map(TokenLogprob, ids[:end], drawn.logprobs.tolist(), likeliest))
        return Completion(text, continuation.stopped or end < len(ids), logprobs, min(end + 1, len(ids)))


def _check_request(n, temperature, top_p, max_tokens, seed, stop, logprobs, vocab_size) -> None:
    """Raises: UserError naming the argument that is out of range."""
    if not isinstance(stop, Sequence) or isinstance(stop, str) or not all(isinstance(s, str) and s for s in stop):
        raise UserError(f"stop is {stop!r}; it must be a list of texts that are not empty")
    seeds = [("seed", one) for one in (seed if isinstance(seed, list | tuple) else [seed])]
    for name, value in [("n", n), ("max_tokens", max_tokens), ("logprobs", logprobs), *seeds]:
        if not isinstance(value, int | np.integer) and (name, value) != ("logprobs", None):
            raise UserError(f"{name} is {value!r}; it must be a whole number")
    for name, value in {"temperature": temperature, "top_p": top_p}.items():
        if not isinstance(value, int | float | np.integer | np.floating):
            raise UserError(f"{name} is {value!r}; it must be a number")
    for name, value, fits, wanted in (
        ("n", n, n >= 0, "0 or more"),
        ("temperature", temperature, 0 <= temperature < math.inf, "0 or more"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0, and at most 1"),
        ("max_tokens", max_tokens, max_tokens >= 1, "1 or more"),
        *((name, one, 0 <= one < 2**32, "from 0 to 2**32 - 1") for name, one in seeds),
        ("logprobs", logprobs, logprobs is None or 0 <= logprobs <= vocab_size, f"from 0 to {vocab_size}, or None"),
    ):
        if not fits:
            raise UserError(f"{name} is {value}; it must be {wanted}")


def _of_tokenizer(logits: jax.Array, vocab_size: int) -> jax.Array:
    """Rules out ids that pad the embedding to a round size: the tokenizer cannot spell them."""
    return jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits, -jnp.inf)


_next_token_logprobs = jax.jit(Model.next_logprobs, static_argnums=(0, 6))


class _Drawn(NamedTuple):
    """Whatever follows an end token is to be ignored."""

    tokens: jax.Array  # int32[B, N]
    logprobs: jax.Array | None  # float32[B, N]
    likeliest_ids: jax.Array | None  # int32[B, N, K]
    likeliest_logprobs: jax.Array | None  # float32[B, N, K]


@functools.partial(jax.jit, static_argnums=0, static_argnames=("stop_ids", "vocab_size", "new_tokens", "likeliest"))
def _sample(
    model: Model,
    params,
    lora,
    tokens_BP,
    segments_BP,
    request_ids_B2,
    seeds_B,
    temperature,
    top_p,
    *,
    stop_ids: tuple[int, ...],
    vocab_size: int,
    new_tokens: int,
    likeliest: int | None,
) -> _Drawn:
    B, P = tokens_BP.shape
    positions_BP = jnp.maximum(jnp.cumsum(segments_BP, axis=1) - 1, 0)
    logits_BV, cache = model.extend(
        params, lora, tokens_BP, segments_BP, positions_BP, model.empty_cache(B, P + new_tokens)
    )
    fold = jax.vmap(jax.random.fold_in)
    keys_B = fold(fold(jax.vmap(jax.random.key)(seeds_B), request_ids_B2[:, 0]), request_ids_B2[:, 1])
    stops = jnp.array(stop_ids)

    def draw(logits_BV, index):
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, index)
        tempered_BV = logits_BV / jnp.maximum(temperature, 1e-6)
        # Sorting a vocabulary at every step is dear, and mostly nothing is to be cut off.
        tempered_BV = jax.lax.cond(top_p < 1, lambda x: _nucleus(x, top_p), lambda x: x, tempered_BV)
        sampled = jax.vmap(jax.random.categorical)(keys, tempered_BV)
        return jnp.where(temperature > 0, sampled, jnp.argmax(logits_BV, axis=-1))

    def step(carry):
        index, logits_BV, positions_B1, done_B, cache, drawn = carry
        logits_BV = _of_tokenizer(logits_BV, vocab_size)
        token_B = jnp.where(done_B, stops[0], draw(logits_BV, index))
        done_B |= (token_B[:, None] == stops).any(axis=1)
        now = _Drawn(token_B, None, None, None)
        if likeliest is not None:
            logprobs_BV = jax.nn.log_softmax(logits_BV)
            chosen_B = jnp.take_along_axis(logprobs_BV, token_B[:, None], axis=-1)[:, 0]
            values_BK, ids_BK = jax.lax.top_k(logprobs_BV, likeliest)
            now = _Drawn(token_B, chosen_B, ids_BK, values_BK)
        drawn = jax.tree.map(lambda all_BN, now_B: all_BN.at[:, index].set(now_B), drawn, now)
        ones_B1 = jnp.ones((B, 1), jnp.int32)
        logits_BV, cache = model.extend(params, lora, token_B[:, None], ones_B1, positions_B1, cache)
        return index + 1, logits_BV, positions_B1 + 1, done_B, cache, drawn

    def goes_on(carry):
        index, _, _, done_B, _, _ = carry
        return (index < new_tokens) & ~done_B.all()

    # What is never drawn, since all rows have ended, reads as an end token.
    drawn = _Drawn(jnp.full((B, new_tokens), stops[0]), None, None, None)
    if likeliest is not None:
        shape = (B, new_tokens, likeliest)
        drawn = _Drawn(drawn.tokens, jnp.zeros(shape[:2]), jnp.zeros(shape, jnp.int32), jnp.zeros(shape))
    done_B = ~(segments_BP > 0).any(axis=1)  # rows that only fill up the batch
    start = (0, logits_BV, positions_BP[:, -1:] + 1, done_B, cache, drawn)
    *_, drawn = jax.lax.while_loop(goes_on, step, start)
    return drawn


def _nucleus(logits_BV: jax.Array, top_p: jax.Array) -> jax.Array:
    """Rules out all but the likeliest tokens that first reach the probability `top_p` together."""
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    probs_BV = jax.nn.softmax(sorted_BV)
    kept_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV < top_p  # what lies before it is not enough yet
    lowest_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV >= lowest_B1, logits_BV, -jnp.inf)


def _fewest_slots(lengths: list[int]) -> tuple[int, list[list[int]]]:
    """The row length, up to twice the shortest that will do, at which examples of these lengths take the fewest slots;
    and which of them share a row."""
    shortest = _round_up(max([_MIN_SCORED_LENGTH, *lengths]), _LENGTH_GRAIN)
    choices = {length: pack(lengths, length) for length in range(shortest, 2 * shortest + 1, _LENGTH_GRAIN)}
    length = min(choices, key=lambda length: length * len(choices[length]))
    return length, choices[length]


def _row_count(needed: int) -> int:
    """Rows of each compiled call: no more than it takes."""
    return min(_ROWS, _round_up(max(needed, 1), _ROW_GRAIN))


def _round_up(value: int, grain: int) -> int:
    return -(-value // grain) * grain
