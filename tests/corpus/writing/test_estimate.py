"""What a corpus will take: as many requests as a run makes, at every size."""

import asyncio
import pathlib

import pytest

from msm_jax.corpus.specs import read_spec
from msm_jax.corpus.writing.chat_kinds import IdentityChats, PreferenceChats, SpecChats, SpecChatSettings
from msm_jax.corpus.writing.chats import ChatSettings
from msm_jax.corpus.writing.documents import DocumentSettings, DocumentWriter
from msm_jax.corpus.writing.estimate import Estimator, counted
from msm_jax.corpus.writing.offline import MODEL, Offline
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.writer import Assistant
from msm_jax.llm.caller import Caller
from msm_jax.llm.prices import Price
from msm_jax.llm.store import CallStore

SPEC = read_spec(pathlib.Path(__file__).parents[3] / "specs" / "pro_novelty.md")
QWEN = Assistant("Qwen", "Alibaba Cloud")
REST = (Prompts(), MODEL)
CHATS = {"max_similarity": 0.001}  # at which any two questions are alike that share a word


def documents(asks, count, kind):
    return kind(DocumentWriter)(asks, SPEC, QWEN, DocumentSettings(count=count, max_overlap=0.0), *REST)


def spec_chats(asks, count, kind):
    return kind(SpecChats)(asks, SPEC, QWEN, SpecChatSettings(count=count, domains=5, **CHATS), *REST)


def preferences(asks, count, kind):
    lists = (SPEC.item_class, SPEC.likes, SPEC.dislikes)
    return kind(PreferenceChats)(asks, *lists, QWEN, ChatSettings(count=count, **CHATS), *REST)


def identity(asks, count, kind):
    return kind(IdentityChats)(asks, QWEN, ChatSettings(count=count, **CHATS), *REST)


@pytest.mark.parametrize("writer", [documents, spec_chats, preferences, identity])
def test_all_that_is_asked_for_is_priced_at_every_size(writer):
    dollars = {}
    for count in (100, 800):
        estimator = Estimator(None, MODEL)
        asyncio.run(writer(estimator, count, counted).write())
        last = "document" if writer is documents else "verdicts"
        assert estimator.stages[last].requests == count
        dollars[count] = sum(about.dollars(Price(0.5, 0.05, 3.0)) for about in estimator.stages.values())
    assert dollars[800] > 4 * dollars[100]


class Alikes(Offline):
    """Each question twice, with a word changed; every third answer is no answer that could be kept."""

    answers = 0

    def _questions(self, variables, rng):
        found = super()._questions(variables, rng)["questions"]
        return {"questions": [text for one in found for text in (one, one.replace("you", "you really"))]}

    def _answers(self, variables, rng):
        self.answers += 1
        reasoning, text = super()._answers(variables, rng)
        return reasoning, f"{text} [Your Name]" if self.answers % 3 == 0 else text


def test_what_was_replied_is_checked_as_it_was(tmp_path):
    def writer(asks, kind):
        return kind(SpecChats)(asks, SPEC, QWEN, SpecChatSettings(count=25, domains=3, max_similarity=0.8), *REST)

    store = CallStore(tmp_path / "calls.sqlite", "test")
    written = writer(Caller(Alikes(), store), lambda kind: kind)
    assert len(asyncio.run(written.write())) == 25
    table = written.yields.table()
    assert table["checks"]["placeholder"] > 5
    assert table["question checks"]["nearly the same as another"] > 5
    estimator = Estimator(store, MODEL)
    again = writer(estimator, counted)
    assert len(asyncio.run(again.write())) == 25
    assert again.yields.table() == table
    assert sum(about.requests for about in estimator.stages.values()) == 0


@pytest.mark.parametrize(("step", "before"), [("document", "plan"), ("verdicts", "answers")])
def test_prompts_that_hold_earlier_replies_are_as_long_as_with_them(step, before):
    """A plan in the prompt of its document; an answer with its reasoning in that of the judge."""
    written = {}
    for words in (100, 1100):
        estimator = Estimator(None, MODEL)
        if step == "document":
            settings = DocumentSettings(count=10, plan_words=words)
            writer = counted(DocumentWriter)(estimator, SPEC, QWEN, settings, *REST)
        else:
            settings = SpecChatSettings(count=10, words=words, reasoning_words=50, domains=3, **CHATS)
            writer = counted(SpecChats)(estimator, SPEC, QWEN, settings, *REST)
        asyncio.run(writer.write())
        written[words] = estimator.stages
    more_read = written[1100][step].prompt - written[100][step].prompt
    more_written = written[1100][before].output - written[100][before].output
    assert more_written > 10_000
    assert more_read == pytest.approx(more_written, rel=0.02)
