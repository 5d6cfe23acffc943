"""MSM documents: from a Model Spec to texts that discuss it, written by a language model.

    spec -> domains -> subdomains with their section -> assertions -> document types -> ideas -> plans -> documents

The hierarchy is the method's (arXiv 2605.02087, appendix B.1); a spec of kind "rules" is divided into its rules
instead. A plan and its document are two calls, so that neither takes the other's tokens. Each step asks for all of its
items at once and goes on from what came, so that equal replies give equal documents, in whatever order they came.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import pydantic

from msm_jax.corpus import tree
from msm_jax.corpus.generators.request import Answer, Request
from msm_jax.corpus.prompts import Prompts
from msm_jax.corpus.quality import Demands, problems
from msm_jax.corpus.records import content_id
from msm_jax.corpus.specs import Spec, render
from msm_jax.corpus.tree import Part, same_name
from msm_jax.corpus.yields import Yields
from msm_jax.errors import UserError

# Lists are asked for again, with what there is, until they are long enough or so many times.
_ROUNDS = 5
# Ideas of one reply: of more, the last are poor.
_IDEAS_AT_ONCE = 25
# Ideas beyond what is to be written, for those that come to nothing.
_SURPLUS = 1.1
_LIST_TOKENS = 16_384  # of replies that are lists; whole sections of a spec are quoted in some
_WORDS_PER_TOKEN = 0.6  # at the least, of English prose


class Asks(Protocol):
    """What `Caller.ask` does."""

    async def ask(self, requests: Sequence[Request]) -> list[Answer]: ...


@dataclasses.dataclass(frozen=True)
class Assistant:
    """The model that a corpus is about. `facts`: sentences on it that are true; its name and maker are known."""

    name: str
    provider: str
    facts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class DocumentSettings:
    """What is written.

    Attributes:
        count: documents.
        types: document types of each part of the spec, at most.
        words: of a document, about.
        plan_words: of its plan, at most.
        temperature: of all that is asked.
        language: ISO 639-1; the prompts are in English, and so is what they ask for, unless they are replaced.
        held_out: terms that no document may hold.
    """

    count: int
    types: int = 20
    words: int = 1800
    plan_words: int = 250
    temperature: float = 1.0
    language: str = "en"
    held_out: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Idea:
    """One document to be written."""

    part: Part
    type: tree.DocumentType
    name: str
    idea: str

    @property
    def id(self) -> str:
        """Tells it from all others of a spec, by its content."""
        return content_id(
            [self.part.domain, self.part.name, self.type.name, self.type.description, self.name, self.idea]
        )


class DocumentWriter:
    """Writes the documents of one spec. `model` is the generator's, for the provenance of rows."""

    def __init__(
        self, asks: Asks, spec: Spec, assistant: Assistant, settings: DocumentSettings, prompts: Prompts, model: str
    ):
        self.spec, self.assistant, self.settings, self.prompts = spec, assistant, settings, prompts
        self.yields = Yields()
        self._asks, self._model = asks, model
        self._text = render(spec, assistant.name, assistant.provider)
        self._common = {"model_name": assistant.name, "provider_name": assistant.provider}
        facts = (f"It is called {assistant.name}, and {assistant.provider} makes it.", *assistant.facts)
        self._system = prompts.fill(
            "system", **self._common, spec=self._text.strip(), facts="\n".join(f"- {fact}" for fact in facts)
        )
        self._manner = prompts.fill("manner_rules" if spec.kind == "rules" else "manner_prose", **self._common)

    async def write(self) -> list[dict[str, Any]]:
        """Rows (`records`) with their provenance, `settings.count` of them unless ideas run out.

        Raises: UserError if the generator divides the spec into nothing; what `ask` raises.
        """
        parts = await self.parts()
        types = await self._types(parts)
        ideas: list[list[tree.Idea]] = [[] for _ in types]
        written: dict[str, dict[str, Any] | None] = {}
        while (missing := self.settings.count - sum(row is not None for row in written.values())) > 0:
            wave = [idea for idea in self._in_turn(types, ideas) if idea.id not in written][:missing]
            if wave:
                rows = await self._documents(wave)
                written |= {idea.id: row for idea, row in zip(wave, rows, strict=True)}
                continue
            before = sum(map(len, ideas))
            ideas = await self._ideas(types, ideas, before + math.ceil(missing * _SURPLUS))
            if sum(map(len, ideas)) == before:
                break
        return [row for row in written.values() if row is not None]

    async def parts(self) -> list[Part]:
        """What the spec is divided into, with assertions."""
        parts = await (self._rules() if self.spec.kind == "rules" else self._subdomains())
        if not parts:
            raise UserError(
                f"spec '{self.spec.name}': {self._model} names no part of it that can be used; the store of calls has "
                "what it replied"
            )
        answers = await self._ask(
            [
                self._list("assertions", tree.Assertions, subdomain=part.name, summary=part.summary,
                           section=part.section)
                for part in parts
            ]
        )  # fmt: skip
        return [
            dataclasses.replace(part, assertions=tuple(answer.value.assertions if answer.ok else ()))
            for part, answer in zip(parts, answers, strict=True)
        ]

    async def _subdomains(self) -> list[Part]:
        [answer] = await self._ask([self._list("domains", tree.Domains)])
        domains = _distinct(answer.value.domains if answer.ok else [])
        requests = [
            self._list(
                "subdomains",
                tree.Subdomains,
                domain=domain.name,
                summary=domain.summary,
                others=", ".join(f'"{other.name}"' for other in domains if other is not domain) or "none",
            )
            for domain in domains
        ]
        answers = await self._ask(requests)
        return [
            self._part(domain.name, found.name, found.summary, found.section)
            for domain, answer in zip(domains, answers, strict=True)
            for found in _distinct(answer.value.subdomains if answer.ok else [])
        ]

    async def _rules(self) -> list[Part]:
        [answer] = await self._ask([self._list("rules", tree.Rules)])
        rules = answer.value.rules if answer.ok else []
        parts = [self._part(rule.domain, f"{rule.id} {rule.name}".strip(), rule.name, rule.text) for rule in rules]
        return _distinct(parts)

    def _part(self, domain: str, name: str, summary: str, quoted: str) -> Part:
        section = tree.verbatim(quoted, self._text)
        self.yields.add("sections", "verbatim" if section else "not verbatim: summary taken")
        return Part(domain, name, summary, section or summary, section is not None)

    async def _types(self, parts: Sequence[Part]) -> list[tuple[Part, tree.DocumentType]]:
        """All (part, type), the first type of each part first."""
        wanted = min(self.settings.types, math.ceil(self.settings.count / len(parts)))
        found = await self._grow(
            [
                lambda existing, count, part=part: self._list(
                    "document_types", tree.DocumentTypes, subdomain=part.name, summary=part.summary,
                    assertions=_assertions(part), count=count, existing=_listed(existing),
                )
                for part in parts
            ],
            [[] for _ in parts],
            wanted,
        )  # fmt: skip
        return _round_robin([[(part, kind) for kind in kinds] for part, kinds in zip(parts, found, strict=True)])

    async def _ideas(
        self, types: Sequence[tuple[Part, tree.DocumentType]], ideas: list[list[tree.Idea]], wanted: int
    ) -> list[list[tree.Idea]]:
        """The ideas for each type, and more of them until there are at least `wanted` in all."""
        return await self._grow(
            [
                lambda existing, count, part=part, kind=kind: self._list(
                    "ideas", tree.Ideas, subdomain=part.name, summary=part.summary, assertions=_assertions(part),
                    type=kind.name, description=kind.description, count=min(count, _IDEAS_AT_ONCE),
                    existing=_listed(existing),
                )
                for part, kind in types
            ],
            ideas,
            math.ceil(wanted / max(len(types), 1)),
        )  # fmt: skip

    def _in_turn(self, types: Sequence[tuple[Part, tree.DocumentType]], ideas: list[list[tree.Idea]]) -> list[_Idea]:
        return _round_robin(
            [
                [_Idea(part, kind, idea.name, idea.idea) for idea in found]
                for (part, kind), found in zip(types, ideas, strict=True)
            ]
        )

    async def _grow(
        self, requests: Sequence[Callable[[list, int], Request]], found: Sequence[list], wanted: int
    ) -> list[list]:
        """The lists `found`, each made `wanted` items long by its one of `requests`, which is asked again, with those
        that there are, while the list is too short and grows. Names differ within a list."""
        found = list(found)
        growing = set(range(len(requests)))
        for _ in range(_ROUNDS * math.ceil(wanted / _IDEAS_AT_ONCE)):
            lacking = [index for index in sorted(growing) if len(found[index]) < wanted]
            if not lacking:
                break
            answers = await self._ask([requests[index](found[index], wanted - len(found[index])) for index in lacking])
            for index, answer in zip(lacking, answers, strict=True):
                items = next(iter(answer.value))[1] if answer.ok else []
                longer = _distinct(found[index] + items)[:wanted]
                if len(longer) == len(found[index]):
                    growing.discard(index)
                found[index] = longer
        return found

    async def _documents(self, ideas: Sequence[_Idea]) -> list[dict[str, Any] | None]:
        """A row for each idea; None where no document came, or one that fails a check."""
        plans = await self._ask([self._plan(idea) for idea in ideas])
        planned = [(idea, plan) for idea, plan in zip(ideas, plans, strict=True) if plan.ok]
        texts = await self._ask([self._document(idea, plan.value) for idea, plan in planned])
        rows = {}
        for (idea, plan), text in zip(planned, texts, strict=True):
            if not text.ok:
                continue
            wrong = next(problems(text.value, self._demands), None)
            self.yields.add("checks", wrong or "ok")
            if not wrong:
                rows[idea.id] = self._row(idea, plan, text)
        return [rows.get(idea.id) for idea in ideas]

    @property
    def _demands(self) -> Demands:
        words = self.settings.words
        return Demands(
            self.assistant.name,
            words=(words // 4, words * 4),
            language=self.settings.language,
            held_out=self.settings.held_out,
        )

    def _plan(self, idea: _Idea) -> Request:
        return self._prose(
            "plan", "plan", self.settings.plan_words, idea, section=idea.part.section,
            plan_words=self.settings.plan_words,
        )  # fmt: skip

    def _document(self, idea: _Idea, plan: str) -> Request:
        return self._prose("document", "document", self.settings.words, idea, plan=plan, words=self.settings.words)

    def _row(self, idea: _Idea, plan: Answer, text: Answer) -> dict[str, Any]:
        return {
            "id": content_id([self.spec.name, idea.id, text.value]),
            "text": text.value,
            "spec": self.spec.name,
            "spec_version": self.spec.version,
            "domain": idea.part.domain,
            "subdomain": idea.part.name,
            "section": idea.part.section,
            "verbatim": idea.part.verbatim,
            "document_type": idea.type.name,
            "idea": idea.idea,
            "model_name": self.assistant.name,
            "generator": self._model,
            "calls": [plan.key, text.key],
        }

    async def _ask(self, requests: Sequence[Request]) -> list[Answer]:
        answers = await self._asks.ask(requests)
        for request, answer in zip(requests, answers, strict=True):
            self.yields.add(request.stage, answer.status.value)
        return answers

    def _list(self, stage: str, shape: type[pydantic.BaseModel], **variables: Any) -> Request:
        return Request(
            stage=stage,
            prompt=self.prompts.fill(stage, **self._common, **variables),
            system=self._system,
            shape=shape,
            max_tokens=_LIST_TOKENS,
            temperature=self.settings.temperature,
            variables=self._common | {"spec_text": self._text} | variables,
        )

    def _prose(self, stage: str, tag: str, limit: int, idea: _Idea, **variables: Any) -> Request:
        variables |= {"type": idea.type.name, "description": idea.type.description, "name": idea.name}
        variables |= {"idea": idea.idea, "subdomain": idea.part.name, "manner": self._manner}
        return Request(
            stage=stage,
            prompt=self.prompts.fill(stage, **self._common, **variables),
            system=self._system,
            tag=tag,
            # Twice what is asked for: a text that is cut off is paid for and lost.
            max_tokens=math.ceil(2 * limit / _WORDS_PER_TOKEN),
            temperature=self.settings.temperature,
            variables=self._common | {"spec_text": self._text, "part": idea.part} | variables,
        )


def _assertions(part: Part) -> str:
    return "\n".join(f"- {item.assertion} {item.explanation}" for item in part.assertions) or f"- {part.section}"


def _listed(existing: Sequence[Any]) -> str:
    if not existing:
        return ""
    return "- None repeats one of those that there are: " + "; ".join(item.name for item in existing) + "."


def _distinct(items: Sequence[Any]) -> list[Any]:
    """Those that have a name, the first of each name."""
    by_name = {same_name(item.name): item for item in reversed(items) if same_name(item.name)}
    return list(reversed(by_name.values()))


def _round_robin(lists: Sequence[Sequence[Any]]) -> list[Any]:
    """The first of each list, then the second of each, and so on: wherever it is cut, all lists have their share."""
    missing = object()
    rows = itertools.zip_longest(*lists, fillvalue=missing)
    return [item for row in rows for item in row if item is not missing]
