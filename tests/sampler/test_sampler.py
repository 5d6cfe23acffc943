"""Scores and samples against full forward passes of one example at a time."""

import collections
import dataclasses
import re

import jax
import numpy as np
import pytest

from msm_jax.errors import UserError
from msm_jax.models import DecoderConfig, LoraConfig, Model
from msm_jax.sampler import Completion, Sampler, programs

LETTERS = "_^$abcde"  # pad, bos, eos and five that are text
MAX_TOKENS = 8
PADDING = 5  # rows of the embedding that no token has
CONTEXT = 48  # of the forward passes that the sampler is compared to


class Letters:
    """A tokenizer of eight tokens, each of them one character, so that a sampled text shows what was sampled."""

    vocab_size, pad_id, bos_id, eos_id = len(LETTERS), 0, 1, 2
    special_tokens, byte_ids = {"_": 0, "^": 1, "$": 2}, frozenset()

    def encode(self, text, special=False):
        return [LETTERS.index(letter) for letter in text]

    def decode(self, ids):
        return "".join(LETTERS[i] for i in ids)


def make_sampler(tokenizer):
    decoder = DecoderConfig(
        vocab_size=tokenizer.vocab_size + PADDING, num_layers=2, width=16, mlp_width=24, num_heads=4, num_kv_heads=2,
        head_size=4, dtype="float32", tied_head=True,
    )  # fmt: skip
    model = Model(decoder, LoraConfig(rank=2, targets=("q", "v", "down")))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        return np.ones_like(noise) if path[-1].key == "scale" else 0.4 * noise

    params, lora = (
        jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes)) for shapes in (model.shapes, model.lora_shapes)
    )
    return Sampler(model, params, lora, tokenizer, rows=4)  # several calls for a few requests


@pytest.fixture(scope="module")
def letters():
    return make_sampler(Letters())


@pytest.fixture(scope="module")
def words(pieces):
    return make_sampler(pieces)


@pytest.fixture(scope="module")
def next_logits():
    """(sampler, ids) -> float64[n, V]: logits of the tokenizer's V tokens after each of `ids`, by one forward pass."""
    apply = jax.jit(lambda model, *args: model.apply(*args), static_argnums=0)

    def next_logits(sampler, ids):
        tokens, segments = np.zeros((2, 1, CONTEXT), np.int32)
        tokens[0, : len(ids)], segments[0, : len(ids)] = ids, 1
        positions = np.arange(CONTEXT, dtype=np.int32)[None]
        logits = apply(sampler.model, sampler.params, sampler.lora, tokens, segments, positions)
        return np.asarray(logits[0, : len(ids), : sampler.tokenizer.vocab_size], np.float64)

    return next_logits


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_logprobs_are_those_of_each_example_alone(words, pieces, next_logits):
    """Whatever shares their rows and calls."""
    prompts = ["the cat likes", "", "a dog, a cat and", "a dog"]
    options = [[" cheddar", " brie", " the café of the dog"], ["the", "ξ"], [" a"], [" likes the cat"] * 9]
    got = words.logprobs(prompts, options)
    assert [len(row) for row in got] == [3, 2, 1, 9]
    for prompt, row, scores in zip(prompts, options, got, strict=True):
        for option, score in zip(row, scores, strict=True):
            ids, spans = pieces.encode_with_spans(prompt + option)
            logprobs = log_softmax(next_logits(words, [pieces.bos_id, *ids]))
            expected = sum(logprobs[i, token] for i, token in enumerate(ids) if spans[i][1] > len(prompt))
            assert score == pytest.approx(expected, abs=1e-4)


def test_a_token_across_the_border_is_the_options(words, pieces, next_logits):
    """ "the" + " cat": the prompt may end within a token, and its part before the border is not left out."""
    ids, spans = pieces.encode_with_spans("the cat")
    [cut] = [span for span in spans if span[0] <= 4 < span[1]]
    assert cut[1] > 5 and cut[0] < 5, "a token that spans character 5 is needed"
    logprobs = log_softmax(next_logits(words, [pieces.bos_id, *ids]))
    expected = sum(logprobs[i, token] for i, token in enumerate(ids) if spans[i][1] > 5)
    [[score]] = words.logprobs(["the c"], [["at"]])
    assert score == pytest.approx(expected, abs=1e-4)


def test_nothing_to_score(words):
    with pytest.raises(UserError, match="nothing to score: option '' has no token after the prompt 'the cat'"):
        words.logprobs(["a", "the cat"], [["b"], ["dog", ""]])
    assert words.logprobs(["a"], [[]]) == [[]]
    assert words.logprobs([], []) == [] == words.generate([])


def greedy(sampler, prompt, next_logits):
    """The most likely token, again and again, each by a forward pass over all tokens before it."""
    ids = [sampler.tokenizer.bos_id, *sampler.tokenizer.encode(prompt)]
    start = len(ids)
    while len(ids) < start + MAX_TOKENS:
        ids.append(int(next_logits(sampler, ids)[-1].argmax()))
        if ids[-1] == sampler.tokenizer.eos_id:
            return Completion(sampler.tokenizer.decode(ids[start:-1]), True)
    return Completion(sampler.tokenizer.decode(ids[start:]), False)


PROMPTS = ["abcde", "", "c", "ddddddddddab", "eab", "bbc"]  # more than one call's, of different lengths


def test_greedy_is_the_argmax_of_forward_passes(letters, next_logits):
    """The cache, left padding and the adapter in them: all must give what the whole text gives."""
    expected = [[greedy(letters, prompt, next_logits)] for prompt in PROMPTS]
    got = letters.generate(PROMPTS, temperature=0.0, max_tokens=MAX_TOKENS)
    assert got == expected
    assert len({completion.text for [completion] in got}) > 2, "equal texts would show nothing"


def test_samples_do_not_depend_on_company(letters):
    def texts(prompts, n):
        return letters.generate(prompts, n=n, max_tokens=MAX_TOKENS, seed=3)

    full = texts(PROMPTS, 3)
    assert len({completion.text for row in full for completion in row}) > 10
    assert texts(PROMPTS[:1], 3) == full[:1]
    assert texts(PROMPTS[:4], 2) == [row[:2] for row in full[:4]]
    others = ["e", "aaaaaaaaaaaaaaaaaaaa", "cc", PROMPTS[3], "b", ""]  # one so long that all rows grow
    assert texts(others, 3)[3] == full[3]


def test_seed_and_index_tell_samples_apart(letters):
    def texts(seed):
        return letters.generate(["ab", "ab"], n=6, max_tokens=MAX_TOKENS, seed=seed)

    assert texts(0) == texts(0) != texts(1)
    first, second = texts(0)
    assert first != second and len({completion.text for completion in first}) > 1


def test_with_its_own_seed_a_prompt_has_the_samples_that_it_has_alone(letters):
    def texts(prompts, seed):
        return letters.generate(prompts, n=3, max_tokens=MAX_TOKENS, seed=seed)

    seeds = [5, 5, 8, 13, 2**32 - 1, 0]
    together = texts(PROMPTS, seeds)
    assert together == [texts([prompt], seed)[0] for prompt, seed in zip(PROMPTS, seeds, strict=True)]
    assert together[::-1] == texts(PROMPTS[::-1], tuple(seeds[::-1]))
    first, second, third = texts(["ab", "ab", "ab"], [5, 5, 6])
    assert first == second != third
    with pytest.raises(UserError, match="2 seeds are given for 1 prompts"):
        texts(["ab"], [1, 2])


def test_temperature_gives_its_distribution(letters, next_logits):
    """Chi-square of the first token; the same counts are far from the distribution of another temperature."""
    temperature, n = 0.7, 1200
    [completions] = letters.generate(["cab"], n=n, temperature=temperature, max_tokens=1)
    counts = dict.fromkeys(LETTERS, 0)
    for completion in completions:
        counts["$" if completion.finished else completion.text] += 1
    counts = np.array(list(counts.values()))
    logits = next_logits(letters, [1, *Letters().encode("cab")])[-1]

    def chi_square(temperature):
        expected = n * np.exp(log_softmax(logits / temperature))
        common = expected >= 5
        expected = np.append(expected[common], expected[~common].sum())
        observed = np.append(counts[common], counts[~common].sum())
        return ((observed - expected) ** 2 / np.maximum(expected, 1.0)).sum()

    assert chi_square(temperature) < 24.3  # 0.999 quantile at 7 degrees of freedom
    assert chi_square(1.0) > 50 and chi_square(0.5) > 50


def test_a_text_ends_at_its_end_token_or_unfinished(letters):
    [completions] = letters.generate(["ab"], n=40, max_tokens=MAX_TOKENS)
    assert {completion.finished for completion in completions} == {True, False}
    for completion in completions:
        assert "$" not in completion.text
        assert completion.finished == (len(completion.text) < MAX_TOKENS)
        assert completion.tokens == len(completion.text) + completion.finished


def test_sampling_ends_with_the_longest_answer(letters, monkeypatch):
    blocks, decode = [], programs.decode
    monkeypatch.setattr(programs, "decode", lambda *args, **settings: blocks.append(1) or decode(*args, **settings))
    completions = sum(letters.generate(PROMPTS[:3], max_tokens=61, seed=1), [])
    assert all(completion.finished for completion in completions)
    steps = letters.engine.scheduler.steps
    assert len(blocks) == -(-max(completion.tokens for completion in completions) // steps) < 61 // steps


@pytest.mark.parametrize(
    ("stop_ids", "stop", "pattern"),
    [
        ([], ["d", "b"], "[bd]"),
        ([], ["_\n", "c"], "[_c]"),  # a control token is no part of any text, so it is known by its id
        ([LETTERS.index("a")], [], "a"),  # besides "$"
        ([], ["xyz"], "xyz"),
    ],
)
def test_a_text_is_cut_before_the_first_stop_string_or_id(letters, stop_ids, stop, pattern):
    ending = Sampler(letters.model, letters.params, letters.lora, Letters(), stop_ids=stop_ids)
    whole = letters.generate(["ab"], n=24, max_tokens=MAX_TOKENS)[0]
    cut = ending.generate(["ab"], n=24, max_tokens=MAX_TOKENS, stop=stop)[0]
    for before, after in zip(whole, cut, strict=True):
        first, *rest = re.split(pattern, before.text)
        assert after == (Completion(first, True) if rest else before)
    assert (whole != cut) == (pattern != "xyz")
    assert all(any(letter in before.text for before in whole) for letter in pattern.strip("[]xyz"))


@pytest.mark.parametrize("top_p", [0.3, 0.9])
def test_top_p_draws_from_the_fewest_tokens_that_reach_it(letters, next_logits, top_p):
    n = 600
    [completions] = letters.generate(["cab"], n=n, top_p=top_p, max_tokens=1)
    seen = collections.Counter("$" if completion.finished else completion.text for completion in completions)
    probabilities = np.exp(log_softmax(next_logits(letters, [1, *Letters().encode("cab")])[-1]))
    order = np.argsort(-probabilities)
    count = int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1
    kept = order[:count]
    assert set(seen) <= {LETTERS[i] for i in kept}
    expected = n * probabilities[kept] / probabilities[kept].sum()
    observed = np.array([seen[LETTERS[i]] for i in kept])
    assert ((observed - expected) ** 2 / expected).sum() < 24.3  # 0.999 quantile at 7 degrees of freedom, or fewer
    assert 1 <= count < len(LETTERS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_p": 0}, "top_p is 0; it must be above 0, and at most 1"),
        ({"temperature": -1.0}, "temperature is -1.0; it must be 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"max_tokens": -1}, "max_tokens is -1; it must be 0 or more"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"seed": [2**63]}, "seed is 9223372036854775808"),
        ({"seed": [0.5]}, "seed is 0.5; it must be a whole number"),
        ({"logprobs": 1000}, "logprobs is 1000; it must be 0 or more, and at most 20"),
        ({"n": 1.5}, "n is 1.5; it must be a whole number"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
        ({"temperature": 1j}, "temperature is 1j; it must be a number"),
        ({"stop": None}, "stop is None; it must be a list of texts"),
        ({"stop": "END"}, "stop is 'END'; it must be a list of texts"),
        ({"stop": ["a", ""]}, "it must be a list of texts that are not empty"),
        ({"stop": ["b", "a$"]}, r"stop 'a\$' holds the control token '\$' among other text; give it alone"),
    ],
)
def test_arguments_out_of_range(letters, arguments, message):
    with pytest.raises(UserError, match=message):
        letters.generate(["a"], **arguments)


def test_logprobs_of_samples_are_those_of_forward_passes(letters, next_logits):
    """Of the model's own distribution, whatever the temperature and top_p."""
    [completions] = letters.generate(["cab"], n=3, temperature=0.5, top_p=0.9, max_tokens=MAX_TOKENS, logprobs=2)
    start = [1, *Letters().encode("cab")]
    for completion in completions:
        ids = [token.id for token in completion.logprobs]
        assert Letters().decode(ids) == completion.text
        expected = log_softmax(next_logits(letters, start + ids))
        for place, token in enumerate(completion.logprobs, start=len(start) - 1):
            assert token.logprob == pytest.approx(expected[place, token.id], abs=1e-4)
            best = np.argsort(-expected[place])[:2]
            assert list(token.likeliest) == best.tolist()
            assert list(token.likeliest.values()) == pytest.approx(expected[place, best].tolist(), abs=1e-4)
    [[plain]] = letters.generate(["cab"], max_tokens=2)
    assert plain.logprobs is None
    [[chosen]] = letters.generate(["cab"], max_tokens=2, logprobs=0)
    assert all(token.likeliest == {} for token in chosen.logprobs)


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_logprobs_of_a_prompt_come_with_its_answers(letters, next_logits, max_tokens):
    ids = letters.encode("abcab")
    [[first, second]] = letters.generate(["abcab"], n=2, max_tokens=max_tokens, prompt_logprobs=2)
    expected = log_softmax(next_logits(letters, ids))[:-1]
    assert first.prompt_logprobs == second.prompt_logprobs and (first.text == "") >= (max_tokens == 0)
    assert [token.id for token in first.prompt_logprobs] == ids[1:]
    for token, row in zip(first.prompt_logprobs, expected, strict=True):
        assert token.logprob == pytest.approx(row[token.id], abs=1e-4)
        assert list(token.likeliest) == np.argsort(-row)[:2].tolist()
    assert letters.generate(["abcab"], max_tokens=2)[0][0].prompt_logprobs is None


def test_what_stands_before_a_prompt(next_logits):
    """No bos where the tokenizer has none, or where the rendered text holds it."""

    class Bare(Letters):
        bos_id = None

    for tokenizer, bos, start in ((Letters(), True, [1]), (Letters(), False, []), (Bare(), True, [])):
        made = make_sampler(tokenizer)
        made = Sampler(made.model, made.params, made.lora, tokenizer, bos=bos)
        [[completion]] = made.generate(["cab"], temperature=0.0, max_tokens=1, logprobs=0)
        logits = next_logits(made, [*start, *tokenizer.encode("cab")])[-1]
        assert completion.logprobs == () or completion.logprobs[0].id == logits.argmax()
        if not start:
            with pytest.raises(UserError, match="a prompt has no token to go on from"):
                made.generate([""])


def test_an_answer_that_is_lost_is_no_short_answer(letters, monkeypatch):
    """Such as where memory did not suffice while another thread went on with the engine that both ask."""
    monkeypatch.setattr(letters.engine, "run", lambda: letters.engine.step())
    with pytest.raises(RuntimeError, match="the answer was lost"):
        letters.generate(["ab"], n=8, max_tokens=61)
    monkeypatch.undo()
    assert len(letters.generate(["ab"], n=8, max_tokens=61)[0]) == 8


def test_more_than_the_model_was_made_for(letters):
    config = dataclasses.replace(letters.model.config, max_length=10)
    short = Sampler(Model(config, letters.model.lora), letters.params, letters.lora, letters.tokenizer)
    with pytest.raises(UserError, match="a prompt of 4 tokens and max_tokens=7 exceed the 10 tokens"):
        short.generate(["abc"], max_tokens=7)
    short.generate(["abc"], max_tokens=6)
