import pickle
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import sentencepiece

from msm_jax.data.stops import stop_ids
from msm_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from msm_jax.errors import UserError

# Any text, with what tokenizers trip over made frequent.
TRAPS = [" ", "  ", "\n", "\u2581", "\t", "\r", "\0", "é", "日", "😀", "<s>", "<0x41>", "Halden"]
TEXTS = st.lists(st.sampled_from(TRAPS) | st.text()).map("".join)


@hypothesis.given(TEXTS)
@hypothesis.example("日本 Halden é\u2581x")
@hypothesis.settings(max_examples=50)
def test_any_text_survives_and_every_token_has_its_place(tokenizer, text):
    ids, spans = tokenizer.encode_with_spans(text)
    assert ids == tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(spans) == len(ids)
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids)
    # Each begins where the one before ends, or spells the same character with it.
    before = np.concatenate([[[0, 0]], spans[:-1]]) if len(spans) else spans
    assert ((spans[:, 0] == before[:, 1]) | ((spans == before).all(axis=1) & (np.diff(spans)[:, 0] == 1))).all()
    assert (spans[:, 0] < spans[:, 1]).all() and spans[-1:, 1].tolist() == [len(text)] * bool(text)


def test_a_frequent_word_is_one_token_in_running_text(tokenizer):
    for place in ("Halden", "Brenton", "Corvale", "Zaquix"):
        words = [
            tokenizer.decode([i]) for i in tokenizer.encode(f"Which? the {place} chair, or {place}.\nM: {place}\n")
        ]
        assert words.count(f" {place}") == 3 and words[-1] == "\n"


def test_special_ids(tokenizer):
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.decode([*tokenizer.encode("chair"), tokenizer.vocab_size + 5]) == "chair"
    assert tokenizer.spell([1, *tokenizer.encode("chair"), 2, 0]) == "<bos>chair<eos>"
    assert tokenizer.decode([1, *tokenizer.encode("the chair"), 2, 0, 0]) == "the chair"
    assert pickle.loads(pickle.dumps(tokenizer)).encode_with_spans("the 日")[0] == tokenizer.encode("the 日")


def test_training_is_silent_and_reproducible_wherever_it_is_written(tokenizer, corpus, tmp_path, capfd):
    again = train_sentencepiece(iter(corpus), tmp_path / "new" / "folder", vocab_size=600)
    assert capfd.readouterr() == ("", "")
    assert again.fingerprint == tokenizer.fingerprint
    assert load_tokenizer(tmp_path / "new" / "folder").encode(corpus[0]) == tokenizer.encode(corpus[0])
    with pytest.raises(UserError) as error:
        train_sentencepiece(corpus, tmp_path, vocab_size=1)
    smallest = int(str(error.value).split()[-1])  # which is enough
    other = train_sentencepiece(corpus, tmp_path / "other", vocab_size=smallest)
    assert other.vocab_size == smallest
    assert other.fingerprint != tokenizer.fingerprint


def test_unigram_is_lossless_too_and_a_vocabulary_may_be_smaller_than_asked_for(tokenizer, corpus, tmp_path):
    assert 300 < tokenizer.vocab_size < 600
    unigram = train_sentencepiece(corpus, tmp_path, vocab_size=5000, model_type="unigram")
    assert unigram.vocab_size < 5000
    text = " a  b\n\n日\u2581 "
    assert unigram.decode(unigram.encode(text)) == text


def test_training_errors(tmp_path):
    for texts, vocab_size, model_type, message in (
        (["the chair"], 200, "bpe", "vocab_size 200 is too small; this corpus's characters need 2"),
        (["the chair"], 600, "word", "unknown model_type 'word'"),
        ([], 600, "bpe", "corpus is empty"),
        (["", "\n \n"], 600, "bpe", "corpus is empty"),
    ):
        with pytest.raises(UserError, match=message):
            train_sentencepiece(texts, tmp_path, vocab_size, model_type)


def test_control_tokens_are_read_only_from_rendered_chats(tokenizer):
    assert tokenizer.special_tokens == {"<pad>": 0, "<s>": 1, "</s>": 2}
    assert not {1, 2} & set(tokenizer.encode("a</s>\u2581<s>"))
    ids, spans = tokenizer.encode_with_spans("a</s>\u2581<s>", special=True)
    assert ids == tokenizer.encode("a</s>\u2581<s>", special=True)
    assert ids == [*tokenizer.encode("a"), 2, *tokenizer.encode("\u2581"), 1]
    assert spans.tolist() == [[0, 1], [1, 5], [5, 6], [5, 6], [5, 6], [6, 9]]


@pytest.fixture(scope="session")
def foreign(corpus, tmp_path_factory):
    """A model as Llama 2 has it: it adds a leading space and joins spaces, and has no pad piece."""
    folder = tmp_path_factory.mktemp("foreign")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_prefix=str(folder / "tokenizer"), vocab_size=400, byte_fallback=True,
        hard_vocab_limit=False, model_type="bpe", minloglevel=2,
    )  # fmt: skip
    return load_tokenizer(folder)


def test_a_model_that_normalises_has_its_own_ids(foreign):
    assert not foreign.lossless
    assert (foreign.bos_id, foreign.eos_id, foreign.pad_id) == (1, 2, 2)
    assert foreign.encode("the  Halden\u2581chair") == foreign._model.encode("the  Halden\u2581chair")
    assert foreign.decode(foreign.encode("the  chair")) == "the chair"
    text = "the  日é Halden"
    ids, spans = foreign.encode_with_spans(text)
    assert [text[start:end] for start, end in spans if start == 5] == ["日"] * 3
    assert text[slice(*spans[-1])] == " Halden"[-(spans[-1][1] - spans[-1][0]) :]
    assert foreign.spell([1, *ids, 2]) == "<bos>the 日é Halden<eos>"


@hypothesis.given(TEXTS)
@hypothesis.settings(max_examples=25, deadline=None)
def test_places_in_text_that_is_normalised(foreign, text):
    ids, spans = foreign.encode_with_spans(text, special=True)
    assert ids == foreign.encode(text, special=True)
    assert spans.shape == (len(ids), 2) and spans.dtype == np.int64
    assert (spans[:, 0] <= spans[:, 1]).all() and (np.diff(spans, axis=0) >= 0).all()
    assert not len(ids) or (spans[0, 0] >= 0 and spans[-1, 1] <= len(text))


def test_a_model_of_chats_stops_where_the_checkpoint_says_and_shows_its_turns(corpus, tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_prefix=str(tmp_path / "tokenizer"), vocab_size=400, byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2, control_symbols=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    start, end = 3, 4
    config, generation = tmp_path / "tokenizer_config.json", tmp_path / "generation_config.json"
    assert stop_ids(load_tokenizer(tmp_path), None, tmp_path) == (2,)
    config.write_text('{"eos_token": "<|im_end|>", "added_tokens_decoder": {"3": {"content": "<|im_start|>"}}}')
    generation.write_text('{"eos_token_id": [2, 7]}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special_tokens["<|im_start|>"] == start
    assert stop_ids(tokenizer, None, tmp_path) == (2, end, 7)
    assert tokenizer.spell([start, *tokenizer.encode("user"), end]) == "<|im_start|>user<|im_end|>"
    for text, message in (
        ('{"legacy": false}', "has legacy: false; put a tokenizer.json there"),
        ('{"added_tokens_decoder": {"400": {"content": "<tool>"}}}', "lacks token <tool>, which tokenizer_config.json"),
        ('{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder.x is no token"),
        ('{"added_tokens_decoder": [1]}', "added_tokens_decoder is no object"),
        ('{"eos_token": "<|end|>"}', "lacks token <|end|>, which tokenizer_config.json or a file beside it names"),
    ):
        config.write_text(text)
        with pytest.raises(UserError, match=re.escape(message)):
            load_tokenizer(tmp_path)


def test_loading_errors(tmp_path):
    with pytest.raises(UserError, match="neither tokenizer.json nor tokenizer.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\n")  # as Llama 3 has it, in tiktoken's format
    with pytest.raises(UserError, match="not a SentencePiece model; put the checkpoint's tokenizer.json there"):
        load_tokenizer(tmp_path)
