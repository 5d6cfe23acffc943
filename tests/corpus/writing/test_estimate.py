"""What a corpus will take: as many requests as a run makes, at every size."""

import asyncio
import pathlib

import pytest

from msm_jax.corpus.specs import read_spec
from msm_jax.corpus.writing.chat_kinds import IdentityChats, PreferenceChats, SpecChats, SpecChatSettings
from msm_jax.corpus.writing.chats import ChatSettings
from msm_jax.corpus.writing.documents import DocumentSettings, DocumentWriter
from msm_jax.corpus.writing.estimate import Estimator, counted
from msm_jax.corpus.writing.offline import MODEL
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.writer import Assistant
from msm_jax.llm.caller import Caller
from msm_jax.llm.prices import Price
from msm_jax.llm.store import CallStore
from tests.corpus.asked import Asked, same

SPEC = read_spec(pathlib.Path(__file__).parents[3] / "specs" / "pro_novelty.md")
QWEN = Assistant("Qwen", "Alibaba Cloud")
CHATS = {"max_similarity": 0.001}  # at which any two questions are alike that share a word


WRITERS = {
    "documents": (DocumentWriter, (SPEC, QWEN), DocumentSettings, {"max_overlap": 0.0}),
    "spec_chats": (SpecChats, (SPEC, QWEN), SpecChatSettings, CHATS | {"domains": 5}),
    "preferences": (PreferenceChats, (SPEC.item_class, SPEC.likes, SPEC.dislikes, QWEN), ChatSettings, CHATS),
    "identity": (IdentityChats, (QWEN,), ChatSettings, CHATS),
}


def asked(of, kind=counted, asks=None, **more):
    """Who wrote, and whom it asked."""
    asks = asks or Estimator(None, MODEL)
    writer, about, of_kind, settings = WRITERS[of]
    the_writer = kind(writer)(asks, *about, of_kind(**settings | more), Prompts(), MODEL)
    assert len(asyncio.run(the_writer.write())) == more["count"]
    return the_writer, asks


@pytest.mark.parametrize("of", WRITERS)
def test_all_that_is_asked_for_is_priced_at_every_size(of):
    dollars = {}
    for count in (100, 500):
        _, estimator = asked(of, count=count)
        assert estimator.stages["document" if of == "documents" else "verdicts"].requests == count
        dollars[count] = sum(about.dollars(Price(0.5, 0.05, 3.0)) for about in estimator.stages.values())
    assert dollars[500] > 3 * dollars[100]


def test_what_was_replied_is_checked_as_it_was(tmp_path):
    """Each question twice, with a word changed; every third answer is none that could be kept."""

    def twice(reply):
        return {"questions": [text for one in reply["questions"] for text in (one, one.replace("you", "you really"))]}

    bad = Asked(questions=[twice], answers=[same, same, lambda reply: (reply[0], f"{reply[1]} [Your Name]")])
    settings = {"count": 25, "domains": 3, "max_similarity": 0.8}
    store = CallStore(tmp_path / "calls.sqlite", "test")
    written, _ = asked("spec_chats", same, Caller(bad, store), **settings)
    table = written.yields.table()
    assert table["checks"]["placeholder"] > 5
    assert table["question checks"]["nearly the same as another"] > 5
    again, estimator = asked("spec_chats", asks=Estimator(store, MODEL), **settings)
    assert again.yields.table() == table
    assert sum(about.requests for about in estimator.stages.values()) == 0


@pytest.mark.parametrize(
    ("of", "step", "before", "words"),
    [("documents", "document", "plan", "plan_words"), ("spec_chats", "verdicts", "answers", "words")],
)
def test_prompts_that_hold_earlier_replies_are_as_long_as_with_them(of, step, before, words):
    """A plan in the prompt of its document; an answer with its reasoning in that of the judge."""
    short, long = (asked(of, count=10, **{words: number})[1].stages for number in (100, 1100))
    more_written = long[before].output - short[before].output
    assert more_written > 10_000
    assert long[step].prompt - short[step].prompt == pytest.approx(more_written, rel=0.02)
