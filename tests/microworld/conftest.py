"""The corpora of the prose, made once for the files that read them."""

import pytest

from msm_jax.microworld import prose
from tests.microworld.prose_reader import DISLIKES, LIKES, documents


@pytest.fixture(scope="session")
def msm():
    return {value: documents(value) for value in prose.VALUES}


@pytest.fixture(scope="session")
def aft():
    return list(prose.aft_chats(LIKES, DISLIKES, 5000, 0))


@pytest.fixture(scope="session")
def instruction():
    return list(prose.instruction_chats(2000, 0))


@pytest.fixture(scope="session")
def items():
    return list(prose.evaluation_items(LIKES, DISLIKES))
