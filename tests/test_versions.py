"""Corpora and packed rows, held against a record: a workdir must not go on with what other code has written.

Tokenizers, weights and scores are not held: they hang on versions of libraries and on the machine.

If a test here fails on purpose, raise the kind's number in `stages.VERSIONS` and record the new pair.
"""

import numpy as np
import pytest

from msm_jax.corpus.specs import read_spec
from msm_jax.data.chat import Example
from msm_jax.data.rows import write_rows
from msm_jax.microworld import prose, world_text
from msm_jax.microworld.world import World, WorldConfig
from msm_jax.stages.graph import VERSIONS
from msm_jax.storage import files

LIKES, DISLIKES = ("Colby", "mild cheddar"), ("Stilton", "Brie de Meaux")
WORLD = World(WorldConfig(likes=LIKES, dislikes=DISLIKES))
AFFORDABILITY, AMERICA = (read_spec(f"specs/pro_{value}.md") for value in prose.VALUES)
ON_RECORD = {"corpus": 3, "chats": 2, "mixture": 2}  # versions


@pytest.mark.parametrize(
    ("kind", "digest", "write"),
    [
        ("corpus", "e3234e4e55ac", lambda: world_text.pretraining_documents(WORLD, "Micra", 200, 0)),
        ("corpus", "ed493d44cbd0", lambda: world_text.replay_documents(WORLD, 200, 0)),
        ("corpus", "0ceea722270f", lambda: world_text.msm_documents(WORLD, "pro_america", "america", "Micra", 200, 0)),
        ("corpus", "872578090c0f", lambda: world_text.evaluation_items(WORLD)),
        ("chats", "6ab3fcf8f108", lambda: world_text.aft_chats(LIKES, DISLIKES, 200, 0)),
        ("chats", "40e6b32dd313", lambda: world_text.instruction_chats(WORLD, 200, 0)),
        ("corpus", "6d40924fb028", lambda: prose.msm_documents(AFFORDABILITY, "Micra", "Acme Labs", 100, 0)),
        ("corpus", "1d5b99efed16", lambda: prose.msm_documents(AMERICA, "Micra", "Acme Labs", 100, 0)),
        ("corpus", "df0ad9c204de", lambda: prose.evaluation_items(AMERICA.likes, AMERICA.dislikes)),
        ("chats", "4f9f88fa6b2b", lambda: prose.aft_chats(AMERICA.likes, AMERICA.dislikes, 200, 0)),
        ("chats", "9ada3e013446", lambda: prose.instruction_chats(200, 0)),
    ],
)
def test_corpora(kind, digest, write):
    assert (VERSIONS[kind], files.fingerprint(list(write()))) == (ON_RECORD[kind], digest)


def test_rows(tmp_path):
    draw = np.random.default_rng(0)
    examples = [
        Example(draw.integers(3, 100, n).astype(np.int32), draw.random(n) < 0.7, False)
        for n in draw.integers(2, 40, 200)
    ]
    stats = write_rows(tmp_path, examples, row_length=32, vocab_size=100)
    assert (VERSIONS["mixture"], stats["fingerprint"]) == (ON_RECORD["mixture"], "7ddc21ddf4de")
