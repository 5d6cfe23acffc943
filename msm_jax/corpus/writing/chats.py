"""Chats of the AFT stage: from questions to answers that a judge lets pass, exactly as many as were asked for.

    slots -> questions -> near duplicates out -> answers -> checks -> verdicts -> rows, and more questions for what fell

The pipeline is the method's (arXiv 2605.02087, appendices B.2 and C.2). `chat_kinds` has what is asked: chats that show
a spec, chats of preferences, chats on identity. As with documents, equal replies give equal rows, in whatever order
they came, and whoever asks for more keeps those that there are.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pydantic

from msm_jax.corpus.datasets.forms import unclean
from msm_jax.corpus.filters.alike import Alike, sentence_embeddings, weighted_words
from msm_jax.corpus.filters.duplicates import Held
from msm_jax.corpus.filters.quality import names_of_assistants
from msm_jax.corpus.records import content_id
from msm_jax.corpus.specs import Spec
from msm_jax.corpus.writing import writer
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.writer import AT_ONCE, PILOT, Asks, Assistant, Settings, Turns, Writer
from msm_jax.llm.request import Answer, Request

# Slots whose turn comes together: the first chats are of all of them.
_BLOCK = 12
# Words of a question that later ones are told not to repeat.
_SHOWN_WORDS = 12
# Of an answer's five-word sequences, the share that one document may hold.
_MOST_COPIED = 0.5
# How often a judge is asked who is not sure.
_VERDICTS = 2
_VERDICT_TOKENS = 2048

Questions = pydantic.create_model("Questions", questions=(list[str], ...))


@functools.cache
def verdict_shape(*criteria: str) -> type[pydantic.BaseModel]:
    """What a judge fills in: a comment, and for each criterion whether it is fulfilled."""
    fields: dict[str, Any] = {name: (Literal["yes", "no", "unclear"], ...) for name in criteria}
    return pydantic.create_model("Verdict", comment=(str, ...), **fields)


def outcome(verdict: Answer) -> str:
    """ "ok" if all is fulfilled, "not X" for the first that is not, "unclear" in all other cases: also where the judge
    gave no verdict that can be read."""
    said = verdict.value.model_dump(exclude={"comment"}) if verdict.ok else {}
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


@dataclasses.dataclass(eq=False)
class Slot:
    """Where questions come from: a domain and a type of question, a thing that is asked about, a facet of identity.

    Attributes:
        share: names the equal share of the rows that its questions are for.
        variables: of the prompt that asks for questions.
        seen: the beginnings of all questions that it gave.
        exhausted: whether it gives no new ones.
    """

    share: str
    domain: str
    type: str
    variables: Mapping[str, str]
    seen: list[str] = dataclasses.field(default_factory=list)
    exhausted: bool = False


@dataclasses.dataclass(frozen=True)
class Question:
    slot: Slot
    text: str
    call: str  # key of the call that it is from


@dataclasses.dataclass
class _Chat:
    """One that passed the checks. `calls`: the keys of what it is from."""

    question: Question
    reasoning: str
    answer: str
    calls: list[str]


@dataclasses.dataclass
class _Share:
    """Rows of one share, `count` at most, and the questions that wait to be answered."""

    turns: Turns  # of its slots
    count: int
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    waiting: list[Question] = dataclasses.field(default_factory=list)
    lost: int = 0  # one after the other

    @property
    def missing(self) -> int:
        return self.count - len(self.rows)

    @property
    def over(self) -> bool:
        """Whether no more rows come: it is full, has no more questions, or nothing comes of them."""
        return not self.missing or self.turns.over and not self.waiting or self.lost >= writer.HOPELESS


class ChatWriter(Writer, abc.ABC):
    """Writes chats of one kind, whose name begins those of its prompts."""

    steps = ("answers", "checks", "judged")
    settings: ChatSettings

    # What the kinds say.

    kind = ""
    criteria: tuple[str, ...] = ()  # of the judge
    tags = ("answer",)  # of a reply: the answer alone, or reasoning and answer
    answer_tokens = 1000
    words = (1, 400)  # of an answer
    reasoning_words = (1, 400)

    @abc.abstractmethod
    async def slots(self) -> list[Slot]:
        """In the order of their turns."""

    @abc.abstractmethod
    def about(self, question: Question) -> dict[str, Any]:
        """Where a row comes from."""

    def told(self, step: str, question: Question) -> dict[str, Any]:
        """What else the prompt of an "answer" or a "verdict" is filled in with."""
        return {}

    def prompt_of(self, step: str) -> str:
        return f"{self.kind}_{step}"

    def worded(self, question: str) -> str:
        """The question as it is asked, and stands in the row."""
        return question

    def wrong_question(self, question: str) -> str | None:
        """What is wrong with it, in a word or two; or None."""
        return self._problem(question, (1, 400))

    def wrong_answer(self, question: Question, reasoning: str, answer: str) -> str | None:
        """The same of an answer and its reasoning."""
        own = f"{self.assistant.name} {self.assistant.provider}"
        if wrong := unclean([{"role": "assistant", "content": answer}], self.assistant.name, self.assistant.provider):
            return wrong
        # Who is taken for another assistant may say that it is not that one, nor of its maker.
        asked = names_of_assistants(question.text, exactly=False)
        if not asked and names_of_assistants(f"{reasoning} {answer}") - names_of_assistants(own, exactly=False):
            return "names another assistant"
        thought = reasoning and self._problem(reasoning, self.reasoning_words)
        return self._problem(answer, self.words) or (f"reasoning {thought}" if thought else None)

    # What they have in common.

    def __init__(
        self, asks: Asks, assistant: Assistant, settings: ChatSettings, prompts: Prompts, model: str,
        spec: Spec | None = None,
    ):  # fmt: skip
        super().__init__(asks, assistant, settings, prompts, model, spec)
        self.system_prompt = self.prompt_of("system")  # of whoever asks and judges
        embed = sentence_embeddings(settings.embeddings) if settings.embeddings else weighted_words
        self._unlike = Alike(settings.max_similarity, embed)
        self._unlike.keep(settings.asked_before)
        self._documents = Held(settings.copied_from)

    async def write(self) -> list[dict[str, Any]]:
        """Rows (`records`) with their provenance: {"id", "messages", "reasoning", ...}, `settings.count` of them unless
        questions run out. "reasoning" is "" in kinds that have none.

        Raises: UserError if hardly any row is of use; what `ask` raises.
        """
        shares = _shares(await self.slots(), self.settings.count)
        tried = useful = 0
        while open_ := [share for share in shares.values() if not share.over]:
            # A few first: if they come to nothing, the others are not paid for.
            limit = math.ceil(PILOT / len(open_)) if not tried else self.settings.count
            await self._find_questions(shares, open_, limit)
            wave: list[Question] = []
            for share in open_:
                count = min(share.missing, limit)
                wave, share.waiting = wave + share.waiting[:count], share.waiting[count:]
            rows = await self._rows(wave)
            for question, row in zip(wave, rows, strict=True):
                share = shares[question.slot.share]
                share.lost = 0 if row else share.lost + 1
                share.rows += [row] if row else []
            tried, useful = tried + len(rows), useful + sum(row is not None for row in rows)
            self._check_yield(useful, tried)
        return writer.in_turn(share.rows for share in shares.values())

    async def _find_questions(self, shares: Mapping[str, _Share], open_: Sequence[_Share], limit: int) -> None:
        """Asks for questions until each of the open shares has as many as it lacks, or has no more."""

        def lacking(share: _Share) -> int:
            return min(share.missing, limit) - len(share.waiting)

        while short := [share for share in open_ if lacking(share) > 0 and not share.turns.over]:
            blocks = [block for share in short for block in share.turns.blocks(lacking(share))]
            asked = [slot for block in blocks for slot in block]
            answers = iter(await self._ask([self.question_request(slot) for slot in asked]))
            found: list[Question] = []
            for block in blocks:
                # The first of each slot, then the second of each: few rows have something of all.
                found += writer.in_turn([self._questions(slot, next(answers)) for slot in block])
            for question in found:
                question.slot.seen.append(" ".join(question.text.split()[:_SHOWN_WORDS]))
            fruitful = set()
            for question, good in zip(found, self._are_good(found), strict=True):
                if good:
                    shares[question.slot.share].waiting.append(question)
                    fruitful.add(question.slot)
            for slot in asked:
                slot.exhausted = slot not in fruitful  # what gives nothing new is not asked for ever

    def question_request(self, slot: Slot) -> Request:
        """Asks for `Questions`."""
        filled = slot.variables | {"count": AT_ONCE, "existing": writer.listed(slot.seen)}
        prompt = self.prompts.fill(self.prompt_of("questions"), **self._common | filled)
        return self._request("questions", prompt, filled | {"kind": self.kind}, shape=Questions, max_tokens=8192)

    def _questions(self, slot: Slot, answer: Answer) -> list[Question]:
        texts = filter(None, map(str.strip, writer.listed_in(answer)))
        return [Question(slot, self.worded(text), answer.key) for text in texts]

    def _are_good(self, found: Sequence[Question]) -> list[bool]:
        """Whether each is neither wrong nor like another."""
        wrong = [self.wrong_question(question.text) or self._contaminated(question.text) for question in found]
        kept = iter(self._unlike.keep([question.text for question, why in zip(found, wrong, strict=True) if not why]))
        wrong = [why or (None if next(kept) else "nearly the same as another") for why in wrong]
        for why in wrong:
            self.yields.add("question checks", why or "ok")
        return [why is None for why in wrong]

    async def _rows(self, questions: Sequence[Question]) -> list[dict[str, Any] | None]:
        """A row for each question; None where no answer came, or one that a check or the judge did not let pass."""
        answers = await self._ask([self.answer_request(question) for question in questions])
        chats = [self._chat(question, answer) for question, answer in zip(questions, answers, strict=True)]
        passed = iter(await self._judge([chat for chat in chats if chat]))
        return [self._row(chat) if chat and next(passed) else None for chat in chats]

    def answer_request(self, question: Question) -> Request:
        """Asks for the answer, or for (reasoning, answer)."""
        told = {"facts": self.assistant.facts_told} | self.told("answer", question)
        system = self.prompts.fill(self.prompt_of("answer"), **self._common | told)
        known = told | {"question": question.text, "kind": self.kind}
        form = {"tags": self.tags, "refusable": False, "max_tokens": self.answer_tokens}
        return self._request("answers", question.text, known, system, **form)

    def _chat(self, question: Question, answer: Answer) -> _Chat | None:
        if not answer.ok:
            return None
        reasoning, text = answer.value if isinstance(answer.value, tuple) else ("", answer.value)
        wrong = self._fault(question, reasoning, text)
        self.yields.add("checks", wrong or "ok")
        return None if wrong else _Chat(question, reasoning, text, [question.call, answer.key])

    def _fault(self, question: Question, reasoning: str, answer: str) -> str | None:
        wrong = self.wrong_answer(question, reasoning, answer) or self._contaminated(f"{reasoning}\n{answer}")
        return wrong or ("copied from a document" if self._documents.copied(answer, _MOST_COPIED) else None)

    async def _judge(self, chats: Sequence[_Chat]) -> list[bool]:
        """Whether each passes. A judge who is not sure is asked once more, and then it does not pass."""
        said = ["unclear"] * len(chats)
        for sample in range(_VERDICTS):
            open_ = [index for index, one in enumerate(said) if one == "unclear"]
            verdicts = await self._ask([self.verdict_request(chats[index], sample) for index in open_])
            for index, verdict in zip(open_, verdicts, strict=True):
                chats[index].calls.append(verdict.key)
                said[index] = outcome(verdict)
                if said[index] != "unclear" or sample + 1 == _VERDICTS:
                    self.yields.add("judged", said[index])
        return [one == "ok" for one in said]

    def verdict_request(self, chat: _Chat, sample: int) -> Request:
        """Asks for a `verdict_shape`."""
        told = {"question": chat.question.text, "reasoning": chat.reasoning, "answer": chat.answer}
        told |= self.told("verdict", chat.question)
        prompt = self.prompts.fill(self.prompt_of("verdict"), **self._common | told)
        # The first verdict is the judge's likeliest; a second of that kind would be the same.
        temperature = max(self.settings.temperature, 0.5) if sample else 0.0
        form = {"shape": verdict_shape(*self.criteria), "max_tokens": _VERDICT_TOKENS, "temperature": temperature}
        return self._request("verdicts", prompt, {"criteria": self.criteria}, **form, sample=sample)

    def _row(self, chat: _Chat) -> dict[str, Any]:
        question = chat.question
        return {
            "id": content_id([question.text, chat.reasoning, chat.answer]),
            "messages": [{"role": "user", "content": question.text}, {"role": "assistant", "content": chat.answer}],
            "reasoning": chat.reasoning,
            **self.about(question),
            "domain": question.slot.domain,
            "question_type": question.slot.type,
            "model_name": self.assistant.name,
            "generator": self.model,
            "calls": chat.calls,
        }


def with_reasoning(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as it is trained on with its reasoning: a block at the start of the answer, as Qwen3 writes it."""
    *before, last = row["messages"]
    content = f"<think>\n{row['reasoning']}\n</think>\n\n{last['content']}"
    return {**without_reasoning(row), "messages": [*before, last | {"content": content}]}


def without_reasoning(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same row, with the answer alone."""
    return {name: value for name, value in row.items() if name != "reasoning"}


def _shares(slots: Sequence[Slot], count: int) -> dict[str, _Share]:
    """Equal shares of `count` rows; what does not divide goes to the first of them."""
    by_name: dict[str, list[Slot]] = {}
    for slot in slots:
        by_name.setdefault(slot.share, []).append(slot)
    each, rest = divmod(count, max(len(by_name), 1))
    return {
        name: _Share(Turns(own, _BLOCK), each + (number < rest)) for number, (name, own) in enumerate(by_name.items())
    }
