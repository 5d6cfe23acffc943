import json
import pathlib
import random
import shutil
import sys
import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msm_jax.corpus.filters import alike
from msm_jax.corpus.filters.alike import DEFAULT_MOST, Alike, sentence_embeddings, weighted_words
from msm_jax.errors import UserError

# Questions, some of which ask the same.
_BANK = tomllib.loads(pathlib.Path(__file__).with_name("questions.toml").read_text(encoding="utf-8"))
PAIRS = _BANK["pairs"]
DISTINCT = (*_BANK["distinct"], *(form.format(*fill) for form, fills in _BANK["frames"].items() for fill in fills))
WORDS = "the what you is a would cheese rent honest bread tax walk lie train".split()
texts = st.lists(st.lists(st.sampled_from([*WORDS, "?!"]), max_size=8).map(" ".join), max_size=40)
mosts = st.sampled_from([0.3, 0.5, DEFAULT_MOST, 0.9, 1.0])


def cosine(one, other):
    return float((weighted_words([one]) @ weighted_words([other]).T).toarray()[0, 0])


def test_pairs_that_ask_the_same_are_alike_and_other_questions_are_not():
    same = np.array([cosine(*pair) for pair in PAIRS])
    rows = weighted_words([*DISTINCT, *(first for first, _ in PAIRS)])
    others = (rows @ rows.T).toarray()[np.triu_indices(rows.shape[0], 1)]
    assert (same > DEFAULT_MOST).mean() >= 0.95
    assert others.max() < DEFAULT_MOST - 0.05
    assert all(Alike().keep(DISTINCT))


@settings(max_examples=30)
@given(texts, mosts, st.integers(0, 9))
def test_no_two_that_are_kept_are_alike_and_all_that_are_dropped_are_alike_to_one(asked, most, size):
    """However many calls it takes."""
    kept, known = [], Alike(most)
    verdicts = [*known.keep(asked[:size]), *known.keep(asked[size : 3 * size]), *known.keep(asked[3 * size :])]
    for text, verdict in zip(asked, verdicts, strict=True):
        likest = max((cosine(earlier, text) for earlier in kept), default=0)
        assert verdict == (text not in kept and likest <= most)
        if verdict:
            kept.append(text)


def test_blocks_do_not_show(monkeypatch):
    rng = random.Random(0)
    asked = [" ".join(rng.choices(WORDS, k=5)) for _ in range(300)]
    whole = Alike(0.8).keep(asked)
    assert 50 < sum(whole) < 280
    monkeypatch.setattr("msm_jax.corpus.filters.alike._ROWS", 7)
    monkeypatch.setattr("msm_jax.corpus.filters.alike._KEPT", 20)
    assert Alike(0.8).keep(asked) == whole


def test_questions_that_share_few_rare_words_are_not_compared(monkeypatch):
    """So a question costs about the same, however many were kept."""
    pairs = []
    whole = alike._cosines_of_pairs
    monkeypatch.setattr(alike, "_cosines_of_pairs", lambda a, b: pairs.append(a.shape[0]) or whole(a, b))
    rng, rare = random.Random(0), [f"thing{number}" for number in range(500)]
    asked = [f"What would you do with the {' and the '.join(rng.sample(rare, 6))}?" for _ in range(600)]
    known = Alike()
    assert sum(known.keep(asked)) > 590
    assert sum(pairs) < 600
    assert not any(known.keep([text.upper() for text in asked]))
    assert sum(pairs) >= 300


def test_what_was_dropped_drops_nothing():
    def embed(asked):
        assert asked
        angles = np.radians([float(text) for text in asked])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    most = float(np.cos(np.radians(25)))
    assert Alike(most, embed).keep(["0", "20", "40", "60"]) == [True, False, True, False]
    known = Alike(most, embed)
    assert [known.keep([text]) for text in ("0", "20", "40", "60")] == [[True], [False], [True], [False]]
    assert known.keep(["20", "0"]) == [False, False]


def test_rows_are_of_length_one_whatever_the_case_and_punctuation_and_the_other_texts():
    asked = [*DISTINCT[:40], "", "bread bread Bread tax"]
    rows = weighted_words(asked)
    assert rows.dtype == np.float32
    np.testing.assert_allclose((rows.toarray() ** 2).sum(axis=1), [bool(text) for text in asked], atol=1e-5)
    other = weighted_words([f"{text.upper().replace(' ', ', ')}?" for text in asked])
    np.testing.assert_array_equal(rows.toarray(), other.toarray())
    np.testing.assert_array_equal(rows[[3]].toarray(), weighted_words([asked[3]]).toarray())
    bread, tax = (weighted_words([word]).indices[0] for word in ("bread", "tax"))
    assert rows[-1, bread] / rows[-1, tax] == pytest.approx(1 + np.log(3))  # a word counts less each time


@pytest.mark.parametrize("most", [0, -0.5, 1.1, float("nan")])
def test_a_threshold_that_is_no_cosine(most):
    with pytest.raises(UserError, match="give a number above 0 and at most 1"):
        Alike(most)


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory):
    """A folder with a small random BERT and its word pieces."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("sentences")
    words = sorted({word for text in DISTINCT for word in text.lower().replace("?", "").split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", ".", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64})
    )
    torch.manual_seed(0)
    sizes = {"vocab_size": len(vocabulary), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 64}
    config = transformers.BertConfig(**sizes, initializer_range=0.5)
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


def test_sentence_embeddings_are_the_mean_over_tokens_alone_as_in_a_batch(sentence_model):
    import torch
    import transformers

    embed = sentence_embeddings(sentence_model)
    asked = [*DISTINCT[:70], " ".join(DISTINCT[:40])]
    rows = embed(asked)
    assert (rows.dtype, rows.shape, embed([]).shape) == (np.float32, (71, 32), (0, 32))
    for index in (0, 5, 65, 70):
        np.testing.assert_allclose(embed([asked[index]])[0], rows[index], atol=1e-5)
    assert (rows @ rows.T)[np.triu_indices(71, 1)].max() < 0.999
    model = transformers.AutoModel.from_pretrained(sentence_model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(sentence_model)
    with torch.no_grad():
        mean = model(**tokenizer(asked[0], return_tensors="pt")).last_hidden_state[0].numpy().mean(axis=0)
    np.testing.assert_allclose(rows[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_a_folder_without_safetensors_is_told_and_pickled_weights_are_never_read(sentence_model, tmp_path):
    import torch
    import transformers

    (tmp_path / "empty").mkdir()
    shutil.copytree(sentence_model, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    weights = transformers.AutoModel.from_pretrained(sentence_model).state_dict()
    torch.save(weights, tmp_path / "pickled" / "pytorch_model.bin")
    for folder in ("empty", "pickled"):
        with pytest.raises(
            UserError, match="cannot be loaded .* give a folder with config.json, .*safetensors"
        ) as error:
            sentence_embeddings(str(tmp_path / folder))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_a_missing_library_is_named(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[hf\]'") as error:
        sentence_embeddings("any/model")
    assert library in str(error.value)
