"""Tokenizers of Hugging Face folders: ids, places, and what their control tokens are for."""

import json
import pickle

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers
import transformers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from msm_jax.corpus.records import Document
from msm_jax.data.chat import encode_document, show
from msm_jax.data.huggingface import HuggingFaceTokenizer
from msm_jax.data.tokenizer import load_tokenizer
from msm_jax.errors import UserError
from tests.data.checkpoints import (
    LLAMA_TOKENS,
    QWEN_TOKENS,
    read_ids,
    write_json,
    write_llama,
    write_qwen,
    write_tokenizer,
)

TRAPS = [
    " ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "e\u0301", "a\u0327\u0301", "\u1112\u1161\u11ab", "日", "😀", "\0",
    "👩\u200d👩\u200d👧", "שלום", "\u2126", "\ufb01", "<|im_end|>", "<|eot_id|>", "<think>", "chair", " chair",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(TRAPS) | st.text()).map("".join)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory):
    return load_tokenizer(write_qwen(tmp_path_factory.mktemp("qwen")))


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return load_tokenizer(write_llama(tmp_path_factory.mktemp("llama")))


def test_what_ends_what(qwen, llama):
    end, start, turn = (qwen.special_tokens[token] for token in QWEN_TOKENS)
    assert (qwen.bos_id, qwen.eos_id, qwen.pad_id) == (None, end, end)
    assert qwen.vocab_size == start + 4  # <|im_start|>, <|im_end|>, <think>, </think>
    begin, end = (llama.special_tokens[token] for token in LLAMA_TOKENS[:2])
    assert (llama.bos_id, llama.eos_id, llama.pad_id) == (begin, end, end)


@hypothesis.given(TEXTS)
@hypothesis.settings(max_examples=60)
def test_any_text_survives_and_every_token_has_its_place(llama, text):
    ids, spans = llama.encode_with_spans(text)
    assert ids == llama.encode(text)
    assert llama.decode(ids) == text
    assert not set(llama.special_tokens.values()) & set(ids)
    # The bytes that a token spells tell its place without `tokenizers`.
    alphabet = {letter: byte for byte, letter in bytes_to_unicode().items()}
    pieces = [bytes(alphabet[letter] for letter in llama._plain.id_to_token(i)) for i in ids]
    assert b"".join(pieces) == text.encode()
    character = np.repeat(np.arange(len(text)), [len(letter.encode()) for letter in text])
    byte = 0
    for piece, (start, end) in zip(pieces, spans.tolist(), strict=True):
        assert (start, end) == (character[byte], character[byte + len(piece) - 1] + 1)
        byte += len(piece)


@hypothesis.given(TEXTS)
@hypothesis.example("xe\u0301 y")
@hypothesis.settings(max_examples=30)
def test_places_cover_text_that_is_normalised(qwen, text):
    ids, spans = qwen.encode_with_spans(text, special=True)
    assert ids == qwen.encode(text, special=True)
    assert len(spans) == len(ids)
    covered = np.zeros(len(text), bool)
    for start, end in spans:
        assert start < end
        covered[start:end] = True
    assert covered.all()
    assert (np.diff(spans, axis=0) >= 0).all()


def test_control_tokens_are_read_only_from_rendered_chats(qwen):
    turn = qwen.special_tokens["<|im_end|>"]
    assert turn not in qwen.encode("say <|im_end|> twice")
    assert qwen.decode(qwen.encode("say <|im_end|> twice")) == "say <|im_end|> twice"
    ids, spans = qwen.encode_with_spans("say <|im_end|> twice", special=True)
    assert [tuple(span) for i, span in zip(ids, spans, strict=True) if i == turn] == [(4, 14)]
    assert qwen.decode(ids) == "say  twice" and qwen.spell(ids) == "say <|im_end|> twice"
    # Qwen3's are no control tokens.
    assert qwen.decode(qwen.encode("<think>")) == "<think>" and len(qwen.encode("<think>")) == 1


def test_a_long_text_has_the_ids_of_its_parts(qwen, llama):
    part = "Which chair is this?\n"
    for tokenizer in (qwen, llama):
        ids, spans = tokenizer.encode_with_spans(part * 3000)
        assert ids == tokenizer.encode(part) * 3000 and len(spans) == len(ids)


def test_decoding(qwen, llama):
    assert qwen.decode([*qwen.encode("chair"), qwen.vocab_size, qwen.vocab_size + 99]) == "chair"  # they only pad
    assert llama.decode(llama.encode("a chair , isn 't it ?")) == "a chair , isn 't it ?"  # no space is cleaned up


def test_documents(qwen, llama):
    document = Document("d", "The <|im_end|> chair")
    example = encode_document(llama, document)
    assert show(llama, example.tokens, example.mask) == "<|begin_of_text|>«The <|im_end|> chair<|end_of_text|>»"
    example = encode_document(qwen, document)
    assert example.mask.tolist() == [False] + [True] * (len(example.tokens) - 1)
    assert qwen.spell(example.tokens) == "The <|im_end|> chair<|endoftext|>"


def test_pickle(qwen):
    qwen.encode("x", special=True)
    again = pickle.loads(pickle.dumps(qwen))
    for special in (False, True):
        assert again.encode("a<|im_end|>b", special=special) == qwen.encode("a<|im_end|>b", special=special)
    assert again.encode("<|im_end|>") != again.encode("<|im_end|>", special=True)


def test_fingerprint(qwen, llama, tmp_path):
    assert load_tokenizer(write_qwen(tmp_path / "same")).fingerprint == qwen.fingerprint
    assert llama.fingerprint != qwen.fingerprint
    other = write_tokenizer(tmp_path / "other", QWEN_TOKENS, ("<think>", "</think>"))
    write_json(other / "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    assert load_tokenizer(other).fingerprint != qwen.fingerprint  # no NFC


def test_a_control_token_that_swallows_spaces_has_its_own_place(tmp_path):
    end = tokenizers.AddedToken("<|end|>", lstrip=True, rstrip=True, special=True)
    write_tokenizer(tmp_path, [end])
    write_json(tmp_path / "special_tokens_map.json", {"eos_token": {"content": "<|end|>"}})
    tokenizer = HuggingFaceTokenizer(tmp_path)
    ids, spans = tokenizer.encode_with_spans("a \n<|end|>\n b", special=True)
    assert spans[ids.index(tokenizer.eos_id)].tolist() == [3, 10]


FLAGS = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
ADDED = {"content": "<|new|>", "special": True, **FLAGS}
THINK = {**ADDED, "content": "<think>"}
LISTED = {"additional_special_tokens": ["<|new|>", "<|end|>"]}


def described(*tokens):
    """`added_tokens_decoder` with tokens by their ids, or by NEXT, the next free one."""
    return {"added_tokens_decoder": dict(tokens)}


# Of tokenizer_config, special_tokens_map and added_tokens, beside a tokenizer.json of the tokens of Qwen and <think>.
@pytest.mark.parametrize(
    ("config", "named", "added"),
    [
        ({"extra_special_tokens": ["<|new|>"]}, {}, {}),
        (LISTED, {}, {}),  # by its older name
        ({}, LISTED, {}),
        (described(), LISTED, {}),  # so the map is an old one
        ({"extra_special_tokens": {"tool_token": "<|new|>"}}, {}, {}),
        ({"pad_token": "[PAD]", "extra_special_tokens": ["<|new|>"]}, {}, {}),
        ({"mask_token": "<|new|>", "tool_token": "<|end|>", "unk_token": "[PAD]"}, {}, {}),  # out of order
        ({"extra_special_tokens": ["<think>"]}, {}, {}),  # it stays plain
        ({"mask_token": "<think>"}, {}, {}),  # it does not, having a name
        (described(("THINK", THINK)), {}, {}),  # special in the configuration alone
        (described(("NEXT", {**ADDED, "lstrip": True})), {}, {}),  # swallows spaces
        (described(("THINK", {**THINK, "rstrip": True})), {}, {}),  # so does one that is known
        ({**described(("NEXT", ADDED)), "eos_token": "Q"}, {}, {}),
        ({}, {}, {"<|new|>": "NEXT"}),
    ],
)
def test_tokens_of_the_files_beside_are_those_of_transformers(tmp_path, config, named, added):
    write_tokenizer(tmp_path, QWEN_TOKENS, ("<think>",))
    own = json.loads((tmp_path / "tokenizer.json").read_text())
    write_json(tmp_path / "tokenizer.json", own | {"padding": None})
    (think,) = read_ids(tmp_path, "<think>")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"} | config
    said = {"tokenizer_config": config, "special_tokens_map": named, "added_tokens": added}
    for name, value in said.items():
        text = json.dumps(value).replace('"THINK"', f'"{think}"')
        text = text.replace('"NEXT":', f'"{think + 1}":').replace('"NEXT"', str(think + 1))
        (tmp_path / f"{name}.json").write_text(text if value else "{}")
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "a <|new|> b <think> [PAD] <|end|>c"
    ids = theirs(text)["input_ids"]
    assert ours.encode(text, special=True) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert ours.vocab_size == len(theirs)
    assert ours.spell([ours.special_tokens[theirs.eos_token]]) == theirs.eos_token


def without_a_row(folder, token, bos=None, **named):
    """A folder whose embedding ends before `token`, which a trainer added."""
    write_tokenizer(folder, ("<|im_end|>", token), bos=bos)
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|im_end|>", **named})
    write_json(folder / "config.json", {"vocab_size": read_ids(folder, token)[0]})
    return folder


def test_a_token_without_a_row_is_an_error_only_where_it_is_read(tmp_path):
    tokenizer = load_tokenizer(without_a_row(tmp_path, "[PAD]", pad_token="[PAD]"))
    assert tokenizer.vocab_size == tokenizer.special_tokens["[PAD]"] and tokenizer.pad_id == tokenizer.eos_id
    assert tokenizer.decode(tokenizer.encode("a [PAD]")) == "a [PAD]"  # as a document mentions it
    assert load_tokenizer(tmp_path, rows=999).encode("[PAD]", special=True) == [tokenizer.vocab_size]
    wrong = r"token '\[.*\]' has id [0-9]+, for which the embedding of [0-9]+ rows has none"
    for encode in (tokenizer.encode, tokenizer.encode_with_spans):
        with pytest.raises(UserError, match=wrong):
            encode("a [PAD]", special=True)
    for of_every_text in ({"eos_token": "[X]"}, {"bos": "[X]"}):
        with pytest.raises(UserError, match=wrong):
            load_tokenizer(without_a_row(tmp_path, "[X]", **of_every_text))
    # A document ends with one that has a row.
    tokenizer = load_tokenizer(without_a_row(tmp_path, "<|endoftext|>"))
    assert tokenizer.eos_id == tokenizer.special_tokens["<|im_end|>"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json:1: not JSON"),
        ("tokenizer.json", "[]", "not a JSON object"),
        ("tokenizer.json", '{"model": {}}', "holds no vocabulary"),
        ("tokenizer.json", '{"model": {"type": "New", "vocab": {}}}', "`tokenizers` cannot read it"),
        ("tokenizer_config.json", '{"eos_token": "<nope>"}', "no token '<nope>', which the folder names as eos_token"),
        ("tokenizer_config.json", "{}", "no token ends a document; name an eos_token"),
        ("tokenizer_config.json", '{"extra_special_tokens": [3]}', "list of special tokens has other than texts"),
        ("tokenizer_config.json", '{"eos_token": 3}', "eos_token is 3; it must be a token's text"),
        ("added_tokens.json", '{"<new>": "9"}', "added_tokens.json: not an object of tokens and their ids"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"9999": {"content": "<new>"}}}',
            "has id [0-9]+, not 9999",
        ),
    ],
)
def test_files_that_do_not_fit(tmp_path, file, text, message):
    write_tokenizer(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


def test_a_text_that_begins_with_several_tokens_is_refused(tmp_path):
    write_llama(tmp_path)
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    single = described["post_processor"]["processors"][1]["single"]
    single.insert(0, single[0])
    write_json(tmp_path / "tokenizer.json", described)
    with pytest.raises(UserError, match="begins a text with several tokens"):
        load_tokenizer(tmp_path)
