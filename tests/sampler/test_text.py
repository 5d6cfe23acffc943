"""Pieces of answers against the text of all ids at once."""

import hypothesis
import hypothesis.strategies as st
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from msm_jax.data.tokenizer import load_tokenizer
from msm_jax.sampler.text import Continuation
from tests.data.checkpoints import write_json, write_qwen
from tests.sampler.conftest import TEXTS

WORDS = ("▁the", "▁tide", "▁turns", "▁at", "▁noon", "▁n", "▁")


def write_llama2(folder, legacy):
    """As Llama 2 and Mistral have it: pieces with "▁" for a space, bytes for other characters, and a decoder that takes
    a space off the beginning."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(set("".join(WORDS)))]
    merges = [(word[:end], word[end]) for word in WORDS for end in range(1, len(word))]
    merges = list(dict.fromkeys(merges))
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, *map("".join, merges)]))}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    if legacy:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": "</s>", "bos_token": "<s>"})


def write_sentencepiece(folder):
    """Adds a space before a text, and takes all spaces off its beginning."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 4), model_prefix=str(folder / "tokenizer"), vocab_size=330, byte_fallback=True,
        hard_vocab_limit=False, model_type="bpe", minloglevel=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def kinds(tmp_path_factory, pieces):
    writers = {
        "byte-level": write_qwen,
        "legacy": lambda folder: write_llama2(folder, legacy=True),
        "metaspace": lambda folder: write_llama2(folder, legacy=False),
        "sentencepiece": write_sentencepiece,
    }
    found = {"ours": pieces}
    for name, write in writers.items():
        folder = tmp_path_factory.mktemp(name)
        write(folder)
        found[name] = load_tokenizer(folder)
    return found


KINDS = ["byte-level", "legacy", "metaspace", "sentencepiece", "ours"]
LETTERS = st.sampled_from([" ", "  ", "\n", "é", "日本", "😀", "\ufffd", "▁", "the", " tide", "noon", "</s>", "a"])
SOME_TEXT = st.lists(LETTERS, max_size=8).map("".join)
# Of texts, of bytes alone, of control tokens, and of any tokens.
PARTS = st.lists(SOME_TEXT | st.binary(max_size=4) | st.integers(0, 3) | st.integers(0, 400), max_size=8)
STARTS = ["", "the tide", "The tide turns at noon. " * 30, f"the tide{' ' * 60}", f"the tide {'日' * 20}"]


def ids_of(tokenizer, parts):
    """Ids of strings; of bytes, one for each; and of numbers, themselves."""
    byte_ids, ids = sorted(tokenizer.byte_ids), []
    for part in parts:
        if isinstance(part, bytes):
            ids += [byte_ids[byte] for byte in part] if byte_ids else tokenizer.encode(part.decode("latin-1"))
        else:
            ids += tokenizer.encode(part) if isinstance(part, str) else [part % tokenizer.vocab_size]
    return ids


def in_pieces(tokenizer, prompt, ids, stop=(), sizes=(1,)):
    """(what `add` gave, what `end` gave, whether it stopped)."""
    made, given, start = Continuation(tokenizer, prompt, stop), [], 0
    while start < len(ids):
        size = sizes[len(given) % len(sizes)]
        given.append(made.add(ids[start : start + size]))
        start += size
    return given, made.end(), made.stopped


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.given(
    start=st.sampled_from(STARTS),
    more=SOME_TEXT,
    parts=PARTS,
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    stop=st.lists(st.sampled_from(["noon", " n", "  ", "日本", "本😀", "o", "the tide", "\ufffda"]), max_size=3),
)
@hypothesis.example(
    start=STARTS[-1], more="", parts=[b"a"], sizes=[1], stop=[]
)  # the last tokens of the prompt begin within a character
@hypothesis.settings(max_examples=25)
def test_pieces_are_the_text_of_all_ids_without_that_of_the_prompt(kinds, kind, start, more, parts, sizes, stop):
    tokenizer = kinds[kind]
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    prompt, ids = [*bos, *tokenizer.encode(start + more)], ids_of(tokenizer, parts)
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *ids])
    hypothesis.assume(whole.startswith(before))  # not where new bytes spoil a character of the prompt
    wanted = whole[len(before) :]
    given, rest, stopped = in_pieces(tokenizer, prompt, ids, sizes=sizes)
    assert ("".join(given) + rest, stopped) == (wanted, False)
    cuts = [wanted.index(string) for string in stop if string in wanted]
    given, rest, stopped = in_pieces(tokenizer, prompt, ids, stop, sizes)
    assert ("".join(given) + rest, stopped) == (wanted[: min(cuts, default=len(wanted))], bool(cuts))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_certain_does_not_wait(kinds, kind):
    """Each word comes with its token, after the space that is its own; a character comes when it is whole."""
    tokenizer = kinds[kind]
    prompt, text = "the tide", " turns at noon, 日本 😀 and the cat"
    ids = tokenizer.encode(prompt + text)
    new = ids[len(tokenizer.encode(prompt)) :]
    given, rest, _ = in_pieces(tokenizer, ids[: len(ids) - len(new)], new)
    assert "".join(given) + rest == text
    assert rest == "" and all("\ufffd" not in piece for piece in given)
    steps = [tokenizer.decode([*ids[: len(ids) - len(new)], *new[:end]]) for end in range(1, len(new) + 1)]
    for end, step in enumerate(steps):
        if not step.endswith("\ufffd") and new[end] not in tokenizer.byte_ids:
            assert prompt + "".join(given[: end + 1]) == step


@pytest.mark.parametrize(
    ("stop", "tokens", "given", "rest"),
    [
        (["DEFGHIJ"], ["abc", "DEF", "G", "HI", "J", "k"], ["abc", "", "", "", "", ""], ""),
        (["DEFGHIJ"], ["abc", "DEF", "G", "HI", "k"], ["abc", "", "", "", "DEFGHIk"], ""),
        (["DEFGHIJ"], ["abc", "DEF"], ["abc", ""], "DEF"),
        (["abcd", "bc"], ["ab", "c", "d"], ["", "", ""], ""),  # the first to begin, not the first to be whole
        (["abcd", "bc"], ["ab", "c", "x"], ["", "", "a"], ""),
        (["aab"], ["a", "a", "a", "b"], ["", "", "a", ""], ""),
    ],
)
def test_what_may_begin_a_stop_string_is_held_back(stop, tokens, given, rest):
    class Tokens:
        byte_ids = frozenset()

        def decode(self, ids):
            return "".join(tokens[i] for i in ids)

    assert in_pieces(Tokens(), [], range(len(tokens)), stop)[:2] == (given, rest)


def test_a_long_prompt_is_not_decoded_again_and_again(kinds, monkeypatch):
    tokenizer, counted = kinds["legacy"], []
    prompt, new = tokenizer.encode("the tide turns at noon " * 400), tokenizer.encode("at noon the tide turns " * 20)

    class Counting:
        byte_ids, special_tokens = tokenizer.byte_ids, tokenizer.special_tokens

        def decode(self, ids):
            counted.append(len(ids))
            return tokenizer.decode(ids)

    in_pieces(Counting(), prompt, new)
    assert max(counted) < 100 < len(prompt) and len(counted) < 4 * len(new) + 5
