import pickle

import hypothesis
import hypothesis.strategies as st
import pytest

from msm_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from msm_jax.errors import UserError

# Any text, with what tokenizers trip over made frequent.
TRAPS = [" ", "  ", "\n", "\u2581", "\t", "\r", "\0", "é", "日", "😀", "<s>", "<0x41>", "Halden"]
TEXTS = st.lists(st.sampled_from(TRAPS) | st.text()).map("".join)


def same_as_last(spans):
    return [index > 0 and (spans[index] == spans[index - 1]).all() for index in range(len(spans))]


@hypothesis.given(TEXTS)
@hypothesis.settings(max_examples=200, deadline=None)
def test_any_text_survives_and_every_token_has_its_place(tokenizer, text):
    ids, spans = tokenizer.encode_with_spans(text)
    assert ids == tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(spans) == len(ids)
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids)
    covered = 0
    for (start, end), same_span in zip(spans, same_as_last(spans), strict=True):
        assert start < end
        assert start == (covered - 1 if same_span and end == covered else covered)
        covered = end
    assert covered == len(text)


def test_spans_are_characters_not_bytes(tokenizer):
    text = "日本 Halden é\u2581x"
    ids, spans = tokenizer.encode_with_spans(text)
    spelled = [(text[start:end], tokenizer.decode([i])) for i, (start, end) in zip(ids, spans, strict=True)]
    assert (" Halden", " Halden") in spelled
    assert [part for part, _ in spelled].count("日") == 3
    assert [part for part, _ in spelled].count("\u2581") == 3


@pytest.mark.parametrize("place", ["Halden", "Brenton", "Corvale", "Zaquix"])
def test_a_frequent_word_is_one_token_in_running_text(tokenizer, place):
    ids = tokenizer.encode(f"Which? the {place} chair, or {place}.\nMarlow: {place}\n")
    words = [tokenizer.decode([i]) for i in ids]
    assert words.count(f" {place}") == 3
    assert words[-1] == "\n"


def test_special_ids(tokenizer):
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.decode([1, *tokenizer.encode("the chair"), 2, 0, 0]) == "the chair"


def test_training_is_reproducible_wherever_it_is_written(tokenizer, corpus, tmp_path):
    again = train_sentencepiece(iter(corpus), tmp_path / "new" / "folder", vocab_size=600)
    assert again.fingerprint == tokenizer.fingerprint
    assert load_tokenizer(tmp_path / "new" / "folder").encode(corpus[0]) == tokenizer.encode(corpus[0])
    other = train_sentencepiece(corpus, tmp_path / "other", vocab_size=350)
    assert other.vocab_size == 350
    assert other.fingerprint != tokenizer.fingerprint


def test_unigram_is_lossless_too(corpus, tmp_path):
    tokenizer = train_sentencepiece(corpus, tmp_path, vocab_size=5000, model_type="unigram")
    assert tokenizer.vocab_size < 5000
    text = " a  b\n\n日\u2581 "
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_vocabulary_larger_than_the_corpus_allows_is_made_smaller(tokenizer):
    assert 300 < tokenizer.vocab_size < 600


def test_pickle(tokenizer):
    assert pickle.loads(pickle.dumps(tokenizer)).encode_with_spans("the 日")[0] == tokenizer.encode("the 日")


def test_training_is_silent(corpus, tmp_path, capfd):
    train_sentencepiece(corpus, tmp_path, vocab_size=600)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("texts", "arguments", "message"),
    [
        (["the chair"], {"vocab_size": 200}, "vocab_size 200 is too small; this corpus's characters need 2"),
        (["the chair"], {"vocab_size": 600, "model_type": "word"}, "unknown model_type 'word'"),
        ([], {"vocab_size": 600}, "corpus is empty"),
        (["", "\n \n"], {"vocab_size": 600}, "corpus is empty"),
    ],
)
def test_training_errors(tmp_path, texts, arguments, message):
    with pytest.raises(UserError, match=message):
        train_sentencepiece(texts, tmp_path, **arguments)


def test_the_size_that_the_error_names_is_enough(corpus, tmp_path):
    with pytest.raises(UserError) as error:
        train_sentencepiece(corpus, tmp_path, vocab_size=1)
    smallest = int(str(error.value).split()[-1])
    assert train_sentencepiece(corpus, tmp_path, vocab_size=smallest).vocab_size == smallest


def test_loading_errors(tmp_path):
    with pytest.raises(UserError, match="neither tokenizer.json nor tokenizer.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\n")  # as Llama 3 has it, in tiktoken's format
    with pytest.raises(UserError, match="not a SentencePiece model; put the checkpoint's tokenizer.json there"):
        load_tokenizer(tmp_path)
