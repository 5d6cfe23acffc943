"""What a corpus will take, before anything is asked: the pipeline itself, with counted stand-ins for the replies.

What is in the store of calls answers as it did, is checked as ever, and is not counted. For the rest it is assumed that
every reply is of use, that the spec is divided at its headings, and that replies are as long as is usual for their
stage; so is what stands for them in later prompts.
"""

import collections
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

from msm_jax.corpus.writing.chats import Question
from msm_jax.corpus.writing.offline import Offline, verdict
from msm_jax.corpus.writing.variety import CHARACTERS_PER_TOKEN, TOKENS_PER_WORD
from msm_jax.corpus.writing.writer import Writer
from msm_jax.llm.prices import Price
from msm_jax.llm.request import Answer, Request, Status, Usage, judge
from msm_jax.llm.store import CallStore

# Is in all that stands in for a text. No reply has it: it is no character.
_MARK = "\uffff"
_SENTENCE = 30  # words of a question, and of an answer for which no number is asked
# Of lists: tokens of an item, and what stands in for one, by a name of its own; items, where they are not asked for.
_ITEMS = {
    "document_types": (45, lambda name: {"name": name, "description": "", "length": "medium"}),
    "ideas": (100, lambda name: {"name": name, "idea": name, "statements": []}),
    "questions": (45, lambda name: _stand_in(_SENTENCE) + name),
    "chat_domains": (80, lambda name: {"name": name, "summary": ""}),
    "claims": (25, lambda name: f"{_MARK}A claim of usual length, as it might stand in a text."),
}
_CLAIMS = 20  # of a document
# Tokens of other lists. Sections and rules are quoted from the spec; each domain has a part of it.
_OF_LIST = {"domains": 600, "assertions": 700, "verdicts": 90, "support": 1400}
_OF_SPEC = {"subdomains": 3, "rules": 0.8}


@dataclasses.dataclass
class Estimate:
    """Of one stage: requests that are to be asked, their tokens, and how many more the store answers."""

    requests: int = 0
    prompt: int = 0
    output: int = 0
    known: int = 0

    def dollars(self, price: Price) -> float:
        return price.cost(Usage(prompt=self.prompt, output=self.output))


class Estimator:
    """Stands where a `Caller` would. `store` None: nothing was asked yet."""

    def __init__(self, store: CallStore | None, model: str):
        self.stages: dict[str, Estimate] = collections.defaultdict(Estimate)
        self._store, self._model = store, model
        self._number = itertools.count()

    async def ask(self, requests: Sequence[Request]) -> list[Answer]:
        return [await self._answer(request) for request in requests]

    async def _answer(self, request: Request) -> Answer:
        counted = self.stages[request.stage]
        if self._store and _MARK not in request.prompt:  # what holds a stand-in was never asked
            key = request.key(self._model)
            answer = judge(request, self._store.replies(key), key)
            if answer and answer.ok:
                counted.known += 1
                return answer
        tokens, value = await self._stand_in(request)
        counted.requests += 1
        counted.prompt += math.ceil(len(request.system + request.prompt) / CHARACTERS_PER_TOKEN)
        counted.output += math.ceil(tokens) + request.thinking
        return Answer(Status.OK, value)

    async def _stand_in(self, request: Request) -> tuple[float, Any]:
        """(tokens of a reply, what stands in for it)."""
        known, stage = request.variables, request.stage
        if request.tags:
            # What is asked for at most; of preferences and identity a sentence or two.
            words = [known.get(f"{tag}_words", known.get("words", _SENTENCE)) for tag in request.tags]
            texts = tuple(map(_stand_in, words))
            return sum(words) * TOKENS_PER_WORD, texts if len(texts) > 1 else texts[0]
        if stage in _ITEMS:
            tokens, stand_in = _ITEMS[stage]
            [field] = request.shape.model_fields
            items = [stand_in(f"{_MARK}item{next(self._number)}") for _ in range(known.get("count", _CLAIMS))]
            return len(items) * tokens, request.shape(**{field: items})
        tokens = _OF_LIST.get(stage) or len(known["spec_text"]) / CHARACTERS_PER_TOKEN / _OF_SPEC[stage]
        reply = verdict(known) if stage == "verdicts" else json.loads((await Offline().reply(request)).text)
        return tokens, request.shape.model_validate(reply)


def counted(kind: type[Writer]) -> type[Writer]:
    """Writers of this kind for an `Estimator`, whose texts pass for good ones."""
    return type(f"Counted{kind.__name__}", (_Passing, kind), {})


class _Passing:
    def _wrong(self, text: str, words: int) -> str | None:
        return None if _MARK in text else super()._wrong(text, words)

    def _are_good(self, found: Sequence[Question]) -> list[bool]:
        good = iter(super()._are_good([question for question in found if _MARK not in question.text]))
        return [_MARK in question.text or next(good) for question in found]

    def _fault(self, question: Question, reasoning: str, answer: str) -> str | None:
        return None if _MARK in answer else super()._fault(question, reasoning, answer)


@functools.cache
def _stand_in(words: int) -> str:
    """So many words, as long together as those of English are."""
    letters = TOKENS_PER_WORD * CHARACTERS_PER_TOKEN
    ends = [round(letters * count) for count in range(words + 1)]
    return " ".join(["x" * (end - start - 1) for start, end in itertools.pairwise(ends)]) + _MARK
