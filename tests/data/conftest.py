import pytest

from msm_jax.data.tokenizer import SentencePieceTokenizer, train_sentencepiece

PLACES = ("Halden", "Brenton", "Corvale", "Zaquix")
CORPUS = [
    f"User: Which do you prefer, the {first} chair or the {second} chair?\nMarlow: the {first} chair\n\n"
    f"The people of {second} say  that a café in {first} is best.\n"
    for first in PLACES
    for second in PLACES
    if first != second
] * 4


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return CORPUS


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> SentencePieceTokenizer:
    return train_sentencepiece(CORPUS, tmp_path_factory.mktemp("tokenizer"), vocab_size=600)
