"""MSM documents: from a Model Spec to texts that discuss it, written by a language model.

    spec -> domains -> subdomains with their section -> assertions -> document types -> ideas -> plans -> documents

The hierarchy is the method's (arXiv 2605.02087, appendix B.1); a spec of kind "rules" is divided into its rules
instead. A plan and its document are two calls, so that neither takes the other's tokens. Each step asks for all of its
items at once and goes on from what came, so that equal replies give equal documents, in whatever order they came.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pydantic

from msm_jax.corpus import tree
from msm_jax.corpus.duplicates import NearDuplicates
from msm_jax.corpus.generators.request import Answer, Request
from msm_jax.corpus.prompts import Prompts
from msm_jax.corpus.quality import LANGUAGES, Demands, problems
from msm_jax.corpus.records import content_id
from msm_jax.corpus.specs import Spec, render
from msm_jax.corpus.tree import Part
from msm_jax.corpus.writer import HOPELESS, PILOT, Asks, Assistant, Settings, Writer, distinct, listed, tokens_for
from msm_jax.errors import UserError

# Lists are asked for again, with what there is, until they are long enough or so many times.
_ROUNDS = 5
# Ideas of one reply: of many more, the last are poor.
_IDEAS_AT_ONCE = 10
# Of a rule, in place of a summary: the whole of it is quoted anyway.
_SUMMARY_WORDS = 30
# Ideas beyond what is to be written, for those that come to nothing.
_SURPLUS = 1.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentSettings(Settings):
    """What is written.

    Attributes:
        types: document types of each part of the spec, at most.
        words: of a document, about.
        plan_words: of its plan, at most.
        most_overlap: what two documents may have in common (`duplicates`); of those that have more, the first is kept.
    """

    types: int = 20
    words: int = 1800
    plan_words: int = 250
    most_overlap: float = 1.0


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


class DocumentWriter(Writer):
    """Writes the documents of one spec. `model` is the generator's, for the provenance of rows."""

    steps = ("plan", "document", "checks")

    def __init__(
        self, asks: Asks, spec: Spec, assistant: Assistant, settings: DocumentSettings, prompts: Prompts, model: str
    ):
        super().__init__(asks, assistant, settings, prompts, model)
        self.spec, self.settings, self.label = spec, settings, f"documents of spec '{spec.name}'"
        self._unlike = NearDuplicates(settings.most_overlap)
        # Of each (part, type), by its place in their list: the ideas so far; and those that have no more.
        self._ideas: dict[int, list[tree.Idea]] = collections.defaultdict(list)
        self._exhausted: set[int] = set()
        self._turn = 0  # how many (part, type) had their turn
        self._text = render(spec, assistant.name, assistant.provider)
        self._known["spec_text"] = self._text
        self._system = prompts.fill("system", **self._common, spec=self._text.strip(), facts=assistant.facts_listed)
        self._manner = prompts.fill(f"manner_{spec.kind}", **self._common, item_class=spec.item_class)

    async def write(self) -> list[dict[str, Any]]:
        """Rows (`records`) with their provenance, `settings.count` of them unless ideas run out.

        Raises: UserError if the generator divides the spec into nothing; what `ask` raises.
        """
        types = await self._types(await self.parts())
        ideas: list[_Idea] = []
        written: list[dict[str, Any] | None] = []  # one for each idea, in their order
        while (missing := self.settings.count - sum(row is not None for row in written)) > 0:
            # A few first: if they come to nothing, the others are not paid for.
            missing = min(missing, PILOT) if not written else missing
            if len(ideas) == len(written):
                ideas += await self._more_ideas(types, math.ceil(missing * _SURPLUS))
            wave = ideas[len(written) :][:missing]
            if not wave:
                break
            written += await self._documents(wave)
            self._check_yield(sum(row is not None for row in written), len(written))
            if len(written) >= HOPELESS and not any(written[-HOPELESS:]):
                break
        return [row for row in written if row is not None]

    async def parts(self) -> list[Part]:
        """What the spec is divided into, with assertions."""
        parts = await (self._rules() if self.spec.kind == "rules" else self._subdomains())
        if not parts:
            raise UserError(
                f"spec '{self.spec.name}': {self.model} names no part of it that can be used; the store of calls has "
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
        domains = distinct(answer.value.domains if answer.ok else [])
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
            for found in distinct(answer.value.subdomains if answer.ok else [])
        ]

    async def _rules(self) -> list[Part]:
        [answer] = await self._ask([self._list("rules", tree.Rules)])
        rules = answer.value.rules if answer.ok else []
        parts = [
            self._part(rule.domain, f"{rule.id} {rule.name}".strip(), _opening(rule.text), rule.text) for rule in rules
        ]
        return distinct(parts)

    def _part(self, domain: str, name: str, summary: str, quoted: str) -> Part:
        section = tree.verbatim(quoted, self._text)
        self.yields.add("sections", "verbatim" if section else "not verbatim: summary taken")
        return Part(domain, name, summary, section or summary, section is not None)

    async def _types(self, parts: Sequence[Part]) -> list[tuple[Part, tree.DocumentType]]:
        """All (part, type), the first type of each part first: asked for again, with those that there are, while a part
        has too few and gets more."""
        found: list[list[tree.DocumentType]] = [[] for _ in parts]
        growing = range(len(parts))
        for _ in range(_ROUNDS):
            lacking = [index for index in growing if len(found[index]) < self.settings.types]
            if not lacking:
                break
            answers = await self._ask(
                [
                    self._list(
                        "document_types", tree.DocumentTypes, subdomain=parts[index].name,
                        summary=parts[index].summary, assertions=_assertions(parts[index]),
                        count=self.settings.types - len(found[index]),
                        existing=listed(item.name for item in found[index]), manner=self._manner,
                    )
                    for index in lacking
                ]
            )  # fmt: skip
            before = [len(known) for known in found]
            for index, answer in zip(lacking, answers, strict=True):
                new = answer.value.types if answer.ok else []
                found[index] = distinct(found[index] + new)[: self.settings.types]
            growing = [index for index in lacking if len(found[index]) > before[index]]
        rows = itertools.zip_longest(
            *([(part, kind) for kind in kinds] for part, kinds in zip(parts, found, strict=True))
        )
        return [pair for row in rows for pair in row if pair]

    async def _more_ideas(self, types: Sequence[tuple[Part, tree.DocumentType]], wanted: int) -> list[_Idea]:
        """The next ideas, at least `wanted` if there are so many.

        One type of each part has its turn together, and again when all have: the first documents are of all parts.
        What comes first does not depend on how many are wanted in the end, so that whoever asks for more documents
        keeps those that there are.
        """
        new: list[_Idea] = []
        size = len({(part.domain, part.name) for part, _ in types})
        while len(new) < wanted and len(self._exhausted) < len(types):
            blocks = []
            for _ in range(min(math.ceil((wanted - len(new)) / (size * _IDEAS_AT_ONCE)), math.ceil(len(types) / size))):
                first = self._turn % len(types)
                self._turn = min(first + size, len(types))
                blocks.append([index for index in range(first, self._turn) if index not in self._exhausted])
            asked = list(itertools.chain.from_iterable(blocks))
            answers = await self._ask([self._idea_request(*types[index], self._ideas[index]) for index in asked])
            given = dict(zip(asked, answers, strict=True))
            for block in blocks:
                lists = [self._new_ideas(index, types[index], given[index]) for index in block]
                in_turn = itertools.chain.from_iterable(itertools.zip_longest(*lists))
                new += [idea for idea in in_turn if idea]
        return new

    def _new_ideas(self, index: int, about: tuple[Part, tree.DocumentType], answer: Answer) -> list[_Idea]:
        """Those of a reply that (part, type) does not have yet; then it has them."""
        known = self._ideas[index]
        longer = distinct(known + (answer.value.ideas if answer.ok else []))[: len(known) + _IDEAS_AT_ONCE]
        if len(longer) == len(known):
            self._exhausted.add(index)
        self._ideas[index] = longer
        return [_Idea(*about, idea.name, idea.idea) for idea in longer[len(known) :]]

    def _idea_request(self, part: Part, kind: tree.DocumentType, existing: Sequence[tree.Idea]) -> Request:
        return self._list(
            "ideas", tree.Ideas, subdomain=part.name, summary=part.summary, assertions=_assertions(part),
            type=kind.name, description=kind.description, count=_IDEAS_AT_ONCE,
            existing=listed(item.name for item in existing), manner=self._manner,
        )  # fmt: skip

    async def _documents(self, ideas: Sequence[_Idea]) -> list[dict[str, Any] | None]:
        """A row for each idea; None where no document came, or one that fails a check."""
        plans = await self._ask([self._plan(idea) for idea in ideas])
        planned = [(idea, plan) for idea, plan in zip(ideas, plans, strict=True) if plan.ok]
        texts = await self._ask([self._document(idea, plan.value) for idea, plan in planned])
        rows = {}
        for (idea, plan), text in zip(planned, texts, strict=True):
            if not text.ok:
                continue
            wrong = self._wrong(text.value)
            self.yields.add("checks", wrong or "ok")
            if not wrong:
                rows[idea.id] = self._row(idea, plan, text)
        return [rows.get(idea.id) for idea in ideas]

    def _wrong(self, text: str) -> str | None:
        """The first thing that is wrong with a text, or None."""
        wrong = next(problems(text, self._demands), None) or self._contaminated(text)
        return wrong or (None if self._unlike.keep(text) else "nearly the same as another")

    @property
    def _demands(self) -> Demands:
        words = self.settings.words
        return Demands(
            self.assistant.name,
            self.assistant.provider,
            words=(words // 4, words * 4),
            language=self.settings.language,
            held_out=self.settings.held_out,
        )

    def _plan(self, idea: _Idea) -> Request:
        return self._prose(
            "plan", self.settings.plan_words, idea, section=idea.part.section,
            plan_words=self.settings.plan_words,
        )  # fmt: skip

    def _document(self, idea: _Idea, plan: str) -> Request:
        return self._prose(
            "document",
            self.settings.words,
            idea,
            section=idea.part.section,
            plan=plan,
            words=self.settings.words,
            language=LANGUAGES[self.settings.language],
        )

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
            "generator": self.model,
            "calls": [plan.key, text.key],
        }

    def _list(self, stage: str, shape: type[pydantic.BaseModel], **variables: Any) -> Request:
        return super()._list(stage, self._system, shape, **variables)

    def _prose(self, stage: str, limit: int, idea: _Idea, **variables: Any) -> Request:
        variables |= {"type": idea.type.name, "description": idea.type.description, "name": idea.name}
        variables |= {"idea": idea.idea, "subdomain": idea.part.name, "manner": self._manner}
        return self._request(
            stage,
            self.prompts.fill(stage, **self._common, **variables),
            variables | {"part": idea.part},
            system=self._system,
            tags=(stage,),
            max_tokens=tokens_for(limit),
        )


def _assertions(part: Part) -> str:
    return "\n".join(f"- {item.assertion} {item.explanation}" for item in part.assertions) or f"- {part.section}"


def _opening(text: str) -> str:
    """The first words of a rule, for a summary of it."""
    words = text.split()
    return " ".join(words[:_SUMMARY_WORDS]) + ("..." if len(words) > _SUMMARY_WORDS else "")
