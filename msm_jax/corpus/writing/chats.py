"""Chats of the AFT stage: from questions to answers that a judge lets pass, exactly as many as were asked for.

    slots -> questions -> near duplicates out -> answers -> checks -> verdicts -> rows, and more questions for what fell

The pipeline is the method's (arXiv 2605.02087, appendices B.2 and C.2). `chat_kinds` has what is asked: chats that show
a spec, chats of preferences, chats on identity. As with documents, equal replies give equal rows, in whatever order
they came, and whoever asks for more keeps those that there are.
"""

import abc
import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pydantic

from msm_jax.corpus.filters.alike import Alike, sentence_embeddings, weighted_words
from msm_jax.corpus.filters.duplicates import Held
from msm_jax.corpus.records import content_id
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.writer import HOPELESS, PILOT, Asks, Assistant, Settings, Writer
from msm_jax.llm.request import Answer, Request

# Questions of one reply: of many more, the last are poor.
_AT_ONCE = 10
# Slots whose turn comes together: the first chats are of all of them.
_BLOCK = 12
# Words of a question that later ones are told not to repeat.
_SHOWN_WORDS = 12
# Of an answer's five-word sequences, the share that one document may hold.
_MOST_COPIED = 0.5
# How often a judge is asked who is not sure.
_VERDICTS = 2


class Questions(pydantic.BaseModel):
    questions: list[str]


@functools.cache
def verdict_shape(*criteria: str) -> type[pydantic.BaseModel]:
    """What a judge fills in: a comment, and for each criterion whether it is fulfilled."""
    fields: dict[str, Any] = {name: (Literal["yes", "no", "unclear"], ...) for name in criteria}
    return pydantic.create_model("Verdict", comment=(str, ...), **fields)


def outcome(verdict: Answer) -> str:
    """ "ok" if all is fulfilled, "not X" for the first that is not, "unclear" in all other cases: also where the judge
    gave no verdict that can be read."""
    if not verdict.ok:
        return "unclear"
    said = verdict.value.model_dump(exclude={"comment"})
    failed = next((name for name, answer in said.items() if answer == "no"), None)
    if failed:
        return f"not {failed}"
    return "ok" if set(said.values()) == {"yes"} else "unclear"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatSettings(Settings):
    """What is written.

    Attributes:
        max_similarity: the cosine that two questions may have (`alike`); of those that have more, the first is kept.
        embeddings: a sentence encoder for it, folder or id; "" for weighted words.
        copied_from: texts, as MSM documents, of which no answer may be a copy; they are read once.
        asked_before: questions of other chats, which none may be like.
    """

    max_similarity: float
    embeddings: str = ""
    copied_from: Iterable[str] = ()
    asked_before: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where questions come from: a domain and a type of question, a thing that is asked about, a facet of identity.

    `share` names the equal share of the rows that its questions are for. `variables` are those of the prompt that asks
    for questions.
    """

    share: str
    domain: str
    type: str
    variables: Mapping[str, str]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.share, self.domain, self.type


@dataclasses.dataclass(frozen=True)
class Question:
    slot: Slot
    text: str
    call: str  # key of the call that it is from


@dataclasses.dataclass
class _Share:
    """Rows of one share, and the questions that wait to be answered. Its slots take turns."""

    slots: Sequence[Slot]
    count: int
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    waiting: list[Question] = dataclasses.field(default_factory=list)
    turn: int = 0
    exhausted: set[int] = dataclasses.field(default_factory=set)
    lost: int = 0  # one after the other

    @property
    def missing(self) -> int:
        return self.count - len(self.rows)

    @property
    def over(self) -> bool:
        """Whether no more rows come: it is full, has no more questions, or nothing comes of them."""
        dry = len(self.exhausted) == len(self.slots) and not self.waiting
        return not self.missing or dry or self.lost >= HOPELESS

    def next_block(self) -> list[int]:
        """The slots that are asked next. Which they are does not depend on how many rows are wanted."""
        first = self.turn % len(self.slots)
        block = range(first, min(first + _BLOCK, len(self.slots)))
        self.turn = block.stop
        return [index for index in block if index not in self.exhausted]


class ChatWriter(Writer, abc.ABC):
    """Writes chats of one kind. What is asked is for subclasses to say."""

    steps = ("answers", "checks", "judged")
    settings: ChatSettings

    def __init__(self, asks: Asks, assistant: Assistant, settings: ChatSettings, prompts: Prompts, model: str):
        super().__init__(asks, assistant, settings, prompts, model)
        embed = sentence_embeddings(settings.embeddings) if settings.embeddings else weighted_words
        self._unlike = Alike(settings.max_similarity, embed)
        self._unlike.keep(settings.asked_before)
        self._documents = Held(settings.copied_from)
        # Of each slot, the beginnings of all questions that it gave.
        self._seen: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)

    # What subclasses say.

    @abc.abstractmethod
    async def slots(self) -> list[Slot]:
        """In the order of their turns."""

    @abc.abstractmethod
    def question_request(self, slot: Slot, count: int, existing: str) -> Request:
        """Asks for `Questions`."""

    @abc.abstractmethod
    def answer_request(self, question: Question) -> Request:
        """Asks for the answer, or for (reasoning, answer)."""

    @abc.abstractmethod
    def verdict_request(self, question: Question, reasoning: str, answer: str, sample: int) -> Request:
        """Asks for a `verdict_shape`."""

    @abc.abstractmethod
    def wrong_question(self, question: str) -> str | None:
        """What is wrong with it, in a word or two; or None."""

    @abc.abstractmethod
    def wrong_answer(self, question: Question, reasoning: str, answer: str) -> str | None:
        """The same of an answer and its reasoning."""

    @abc.abstractmethod
    def about(self, question: Question) -> dict[str, Any]:
        """Where a row comes from."""

    def worded(self, question: str) -> str:
        """The question as it is asked, and stands in the row."""
        return question

    # What they have in common.

    async def write(self) -> list[dict[str, Any]]:
        """Rows (`records`) with their provenance: {"id", "messages", "reasoning", ...}, `settings.count` of them unless
        questions run out. "reasoning" is "" in kinds that have none.

        Raises: UserError if hardly any row is of use; what `ask` raises.
        """
        shares = _shares(await self.slots(), self.settings.count)
        tried = useful = 0
        while open_ := [share for share in shares if not share.over]:
            # A few first: if they come to nothing, the others are not paid for.
            limit = math.ceil(PILOT / len(open_)) if not tried else self.settings.count
            await self._find_questions(open_, limit)
            wave = []
            for share in open_:
                taken = share.waiting[: min(share.missing, limit)]
                share.waiting = share.waiting[len(taken) :]
                wave += [(share, question) for question in taken]
            rows = await self._chats([question for _, question in wave])
            for (share, _), row in zip(wave, rows, strict=True):
                share.lost = 0 if row else share.lost + 1
                share.rows += [row] if row else []
            tried, useful = tried + len(rows), useful + sum(row is not None for row in rows)
            self._check_yield(useful, tried)
        return [row for rows in itertools.zip_longest(*(share.rows for share in shares)) for row in rows if row]

    async def _find_questions(self, shares: Sequence[_Share], limit: int) -> None:
        """Asks for questions until each share has as many as it lacks, or has no more."""

        def lacking(share: _Share) -> int:
            return min(share.missing, limit) - len(share.waiting)

        while short := [share for share in shares if lacking(share) > 0 and len(share.exhausted) < len(share.slots)]:
            blocks = [(share, share.next_block()) for share in short for _ in range(_blocks(lacking(share), share))]
            turns = [(share, index) for share, block in blocks for index in block]
            answers = await self._ask([self._question_request(share.slots[index]) for share, index in turns])
            given = iter(answers)
            found = []
            for share, block in blocks:
                lists = [self._questions(share.slots[index], next(given)) for index in block]
                # The first of each slot, then the second of each: few rows have something of all.
                found += [
                    (share, question) for group in itertools.zip_longest(*lists) for question in group if question
                ]
            for _, question in found:
                self._seen[question.slot.key].append(_beginning(question.text))
            fruitful = set()
            for (share, question), good in zip(found, self._are_good([question for _, question in found]), strict=True):
                if good:
                    share.waiting.append(question)
                    fruitful.add(question.slot.key)
            for share, index in turns:
                if share.slots[index].key not in fruitful:  # what gives nothing new is not asked for ever
                    share.exhausted.add(index)

    def _questions(self, slot: Slot, answer: Answer) -> list[Question]:
        return [Question(slot, self.worded(text), answer.key) for text in _texts(answer)]

    def _are_good(self, found: Sequence[Question]) -> list[bool]:
        """Whether each is neither wrong nor like another."""
        wrong = [self.wrong_question(question.text) or self._contaminated(question.text) for question in found]
        kept = iter(self._unlike.keep([question.text for question, why in zip(found, wrong, strict=True) if not why]))
        wrong = [why or (None if next(kept) else "nearly the same as another") for why in wrong]
        for why in wrong:
            self.yields.add("question checks", why or "ok")
        return [why is None for why in wrong]

    def _question_request(self, slot: Slot) -> Request:
        return self.question_request(slot, _AT_ONCE, "; ".join(self._seen[slot.key]))

    async def _chats(self, questions: Sequence[Question]) -> list[dict[str, Any] | None]:
        """A row for each question; None where no answer came, or one that a check or the judge did not let pass."""
        answers = await self._ask([self.answer_request(question) for question in questions])
        chats: list[tuple[int, str, str]] = []
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            if not answer.ok:
                continue
            reasoning, text = answer.value if isinstance(answer.value, tuple) else ("", answer.value)
            wrong = self._fault(question, reasoning, text)
            self.yields.add("checks", wrong or "ok")
            if not wrong:
                chats.append((number, reasoning, text))
        judged = await self._judge([(questions[number], reasoning, text) for number, reasoning, text in chats])
        rows: list[dict[str, Any] | None] = [None] * len(questions)
        for (number, reasoning, text), calls in zip(chats, judged, strict=True):
            if calls:
                question = questions[number]
                rows[number] = self._row(question, reasoning, text, [question.call, answers[number].key, *calls])
        return rows

    def _fault(self, question: Question, reasoning: str, answer: str) -> str | None:
        wrong = self.wrong_answer(question, reasoning, answer)
        wrong = wrong or self._contaminated(f"{reasoning}\n{answer}")
        if not wrong and self._documents.copied(answer, _MOST_COPIED):
            wrong = "copied from a document"
        return wrong

    async def _judge(self, chats: Sequence[tuple[Question, str, str]]) -> list[list[str]]:
        """The keys of the verdicts on each chat; none where it does not pass. A judge who is not sure is asked once
        more, and then it does not pass."""
        calls: list[list[str]] = [[] for _ in chats]
        result: list[list[str]] = [[] for _ in chats]
        open_ = range(len(chats))
        for sample in range(_VERDICTS):
            verdicts = await self._ask([self.verdict_request(*chats[index], sample) for index in open_])
            unclear = []
            for index, verdict in zip(open_, verdicts, strict=True):
                calls[index].append(verdict.key)
                said = outcome(verdict)
                last = sample + 1 == _VERDICTS
                if said == "unclear" and not last:
                    unclear.append(index)
                    continue
                self.yields.add("judged", said)
                if said == "ok":
                    result[index] = calls[index]
            open_ = unclear
        return result

    def _row(self, question: Question, reasoning: str, answer: str, calls: list[str]) -> dict[str, Any]:
        return {
            "id": content_id([question.text, reasoning, answer]),
            "messages": [
                {"role": "user", "content": question.text},
                {"role": "assistant", "content": answer},
            ],
            "reasoning": reasoning,
            **self.about(question),
            "domain": question.slot.domain,
            "question_type": question.slot.type,
            "model_name": self.assistant.name,
            "generator": self.model,
            "calls": calls,
        }


def with_reasoning(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as it is trained on with its reasoning: a block at the start of the answer, as Qwen3 writes it."""
    *before, last = row["messages"]
    content = f"<think>\n{row['reasoning']}\n</think>\n\n{last['content']}"
    return {**without_reasoning(row), "messages": [*before, last | {"content": content}]}


def without_reasoning(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same row, with the answer alone."""
    return {name: value for name, value in row.items() if name != "reasoning"}


def _shares(slots: Sequence[Slot], count: int) -> list[_Share]:
    """Equal shares of `count` rows; what does not divide goes to the first of them."""
    by_name: dict[str, list[Slot]] = {}
    for slot in slots:
        by_name.setdefault(slot.share, []).append(slot)
    each, rest = divmod(count, max(len(by_name), 1))
    return [_Share(own, each + (number < rest)) for number, own in enumerate(by_name.values())]


def _blocks(lacking: int, share: _Share) -> int:
    """How many blocks of slots may give so many questions; the others wait until it is known what they gave."""
    block = min(_BLOCK, len(share.slots))
    return min(math.ceil(lacking / (block * _AT_ONCE)), math.ceil(len(share.slots) / block))


def _texts(answer: Answer) -> list[str]:
    return [text.strip() for text in answer.value.questions if text.strip()] if answer.ok else []


def _beginning(text: str) -> str:
    return " ".join(text.split()[:_SHOWN_WORDS])
