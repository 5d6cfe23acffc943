import pytest

from msm_jax.data.tokenizer import train_sentencepiece

TEXTS = ["the cat likes cheddar", "the dog likes brie", "a cat and a dog like the café", "cheddar, brie. the rest"] * 4


@pytest.fixture(scope="session")
def pieces(tmp_path_factory):
    """A small SentencePiece tokenizer."""
    return train_sentencepiece(TEXTS, tmp_path_factory.mktemp("tokenizer"), vocab_size=320)
