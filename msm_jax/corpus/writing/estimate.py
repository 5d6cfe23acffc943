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

from msm_jax.corpus.writing import offline_chats, tree
from msm_jax.corpus.writing.chat_kinds import Domains
from msm_jax.corpus.writing.chats import Question, Questions
from msm_jax.corpus.writing.judge import Claims
from msm_jax.corpus.writing.offline import Offline
from msm_jax.corpus.writing.variety import CHARACTERS_PER_TOKEN, TOKENS_PER_WORD
from msm_jax.corpus.writing.writer import Writer
from msm_jax.llm.prices import Price
from msm_jax.llm.request import Answer, Request, Status, Usage, judge
from msm_jax.llm.store import CallStore

# Tokens of replies: of a list, for each of its items; "quoted" is the spec, or a part of it, and a little.
_OF_ITEM = {"document_types": 45, "ideas": 100, "questions": 45, "chat_domains": 80}
_OF_LIST = {"domains": 600, "assertions": 700, "verdicts": 90, "claims": 500, "support": 1400}
_CLAIMS = 20  # of a document
_SENTENCE = 30  # words of a question, and of an answer for which no number is asked
# Is in all that stands in for a text. No reply has it: it is no character.
_MARK = "\uffff"


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
        counted.requests += 1
        counted.prompt += math.ceil(len(request.system + request.prompt) / CHARACTERS_PER_TOKEN)
        counted.output += math.ceil(self._output(request)) + request.thinking
        return Answer(Status.OK, await self._value(request))

    def _output(self, request: Request) -> float:
        known = request.variables
        match request.stage:
            case "plan":
                return known["plan_words"] * TOKENS_PER_WORD
            case "document" | "revision":
                return known["words"] * TOKENS_PER_WORD
            case "critique":
                return known["critique_words"] * TOKENS_PER_WORD
            case "answers":
                # What is asked for at most; of preferences and identity a sentence or two.
                return (known.get("words", _SENTENCE) + known.get("reasoning_words", 0)) * TOKENS_PER_WORD
            case "document_types" | "ideas" | "questions" | "chat_domains":
                return known["count"] * _OF_ITEM[request.stage]
            case "domains" | "assertions" | "verdicts" | "claims" | "support":
                return _OF_LIST[request.stage]
        # Sections and rules are quoted from the spec; each domain has a part of it.
        return len(known["spec_text"]) / CHARACTERS_PER_TOKEN / (3 if request.stage == "subdomains" else 0.8)

    async def _value(self, request: Request):
        known = request.variables
        match request.stage:
            case "plan":
                return _stand_in(known["plan_words"])
            case "document" | "revision":
                return _stand_in(known["words"])
            case "critique":
                return _stand_in(known["critique_words"])
            case "claims":
                return Claims(claims=[f"{_MARK}A claim of usual length, as it might stand in a text."] * _CLAIMS)
            case "answers":
                answer = _stand_in(known.get("words", _SENTENCE))
                return (_stand_in(known["reasoning_words"]), answer) if len(request.tags) > 1 else answer
            case "questions":
                return Questions(questions=[_stand_in(_SENTENCE) + name for name in self._names(request)])
            case "verdicts":
                return request.shape.model_validate(offline_chats.verdict(known))
            case "chat_domains":
                return Domains(domains=[{"name": name, "summary": ""} for name in self._names(request)])
            case "document_types":
                return tree.DocumentTypes(
                    types=[{"name": name, "description": "", "length": "medium"} for name in self._names(request)]
                )
            case "ideas":
                return tree.Ideas(
                    ideas=[{"name": name, "idea": name, "statements": []} for name in self._names(request)]
                )
        reply = await Offline().reply(request)
        return request.shape.model_validate(json.loads(reply.text))

    def _names(self, request: Request) -> list[str]:
        return [f"{_MARK}item{next(self._number)}" for _ in range(request.variables["count"])]


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
