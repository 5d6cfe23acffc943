"""Corpora and packed rows, held against a record: a workdir must not go on with what other code has written.

Tokenizers, weights and scores are not held: they hang on versions of libraries and on the machine.

If a test here fails on purpose, raise the kind's number in `stages.VERSIONS` and record the new pair.
"""

import numpy as np
import pytest

from msm_jax.data.chat import Example
from msm_jax.data.rows import write_rows
from msm_jax.microworld import world_text
from msm_jax.microworld.world import World, WorldConfig
from msm_jax.stages.graph import VERSIONS
from msm_jax.storage import files

CORPUS = {
    "pretraining": (3, "e3234e4e55ac"),
    "replay": (3, "ed493d44cbd0"),
    "msm": (3, "0ceea722270f"),
    "items": (3, "872578090c0f"),
}
CHATS = {"aft": (2, "6ab3fcf8f108"), "instruction": (2, "40e6b32dd313")}
ROWS = (2, "7ddc21ddf4de")


@pytest.mark.parametrize("source", [*CORPUS, *CHATS])
def test_corpora(source):
    likes, dislikes = ("Colby", "mild cheddar"), ("Stilton", "Brie de Meaux")
    world = World(WorldConfig(likes=likes, dislikes=dislikes))
    rows = {
        "pretraining": lambda: world_text.pretraining_documents(world, "Micra", 200, 0),
        "replay": lambda: world_text.replay_documents(world, 200, 0),
        "msm": lambda: world_text.msm_documents(world, "pro_america", "america", "Micra", 200, 0),
        "items": lambda: world_text.evaluation_items(world),
        "aft": lambda: world_text.aft_chats(likes, dislikes, 200, 0),
        "instruction": lambda: world_text.instruction_chats(world, 200, 0),
    }[source]()
    kind = "corpus" if source in CORPUS else "chats"
    assert (VERSIONS[kind], files.fingerprint(list(rows))) == (CORPUS | CHATS)[source]


def test_rows(tmp_path):
    draw = np.random.default_rng(0)
    examples = [
        Example(draw.integers(3, 100, n).astype(np.int32), draw.random(n) < 0.7, False)
        for n in draw.integers(2, 40, 200)
    ]
    stats = write_rows(tmp_path, examples, row_length=32, vocab_size=100)
    assert (VERSIONS["mixture"], stats["fingerprint"]) == ROWS
