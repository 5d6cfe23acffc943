"""What a corpus will take, before anything is asked: the pipeline itself, with counted stand-ins for the replies.

What is in the store of calls answers as it did, and is not counted. For the rest it is assumed that every reply is of
use, that the spec is divided at its headings, and that replies are as long as is usual for their stage.
"""

import collections
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from msm_jax.corpus import tree
from msm_jax.corpus.chat_kinds import Domains
from msm_jax.corpus.chats import Question, Questions
from msm_jax.corpus.generators.offline import World
from msm_jax.corpus.generators.prices import Price
from msm_jax.corpus.generators.request import Answer, Request, Status, Usage, judge
from msm_jax.corpus.generators.store import CallStore
from msm_jax.corpus.judge import Claims
from msm_jax.corpus.variety import CHARACTERS_PER_TOKEN, TOKENS_PER_WORD
from msm_jax.corpus.writer import Writer

# Tokens of replies: of a list, for each of its items; "quoted" is the spec, or a part of it, and a little.
_OF_ITEM = {"document_types": 45, "ideas": 100, "questions": 45, "chat_domains": 80}
_OF_LIST = {"domains": 600, "assertions": 700, "verdicts": 90, "claims": 500, "support": 1400}
_CLAIMS = 20  # of a document
# What stands in the prompt of a step from steps before it, and how many words it has.
_READS = {
    "document": {"plan": "plan_words"},
    "critique": {"text": "words"},
    "revision": {"text": "words", "critique": "critique_words"},
}


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
        key, counted = request.key(self._model), self.stages[request.stage]
        answer = judge(request, self._store.replies(key), key) if self._store else None
        if answer and answer.ok:
            counted.known += 1
            return answer
        counted.requests += 1
        counted.prompt += math.ceil(len(request.system + request.prompt) / CHARACTERS_PER_TOKEN + _absent(request))
        counted.output += math.ceil(self._output(request)) + request.thinking
        return Answer(Status.OK, await self._value(request), key=key)

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
                return (known.get("words", 30) + known.get("reasoning_words", 0)) * TOKENS_PER_WORD
            case "document_types" | "ideas" | "questions" | "chat_domains":
                return known["count"] * _OF_ITEM[request.stage]
            case "domains" | "assertions" | "verdicts" | "claims" | "support":
                return _OF_LIST[request.stage]
        # Sections and rules are quoted from the spec; each domain has a part of it.
        return len(known["spec_text"]) / CHARACTERS_PER_TOKEN / (3 if request.stage == "subdomains" else 0.8)

    async def _value(self, request: Request):
        match request.stage:
            case "plan" | "document" | "critique" | "revision":
                return ""
            case "claims":
                return Claims(claims=["A claim of usual length, as it might stand in a text on the model."] * _CLAIMS)
            case "answers":
                return ("", "") if len(request.tags) > 1 else ""
            case "questions":
                # No two of these are alike.
                return Questions(
                    questions=[" ".join(f"{name}{place}" for place in "abcdef") for name in self._names(request)]
                )
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
        reply = await World().reply(request)
        return request.shape.model_validate(json.loads(reply.text))

    def _names(self, request: Request) -> list[str]:
        return [f"item{next(self._number)}" for _ in range(request.variables["count"])]


def _absent(request: Request) -> float:
    """Tokens of the prompt in texts that are not there yet."""
    known, reads = request.variables, _READS.get(request.stage, {})
    return sum(known[words] for text, words in reads.items() if not known[text]) * TOKENS_PER_WORD


def with_texts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The documents of a counted writer; those that are not there yet, with as much text as they will have."""
    return [
        {**row, "text": row["text"] or "x" * int(row["words_wanted"] * TOKENS_PER_WORD * CHARACTERS_PER_TOKEN)}
        for row in rows
    ]


def counted(kind: type[Writer]) -> type[Writer]:
    """Writers of this kind for an `Estimator`, whose texts pass for good ones."""
    return type(f"Counted{kind.__name__}", (_Passing, kind), {})


class _Passing:
    def _wrong(self, text: str, words: int) -> str | None:
        return super()._wrong(text, words) if text else None

    def _tokens(self, row: Mapping[str, Any]) -> float:
        return super()._tokens(row) or row["words_wanted"] * TOKENS_PER_WORD

    def wrong_question(self, question: str) -> None:
        return None

    def wrong_answer(self, question: Question, reasoning: str, answer: str) -> None:
        return None
