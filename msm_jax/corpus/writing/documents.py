"""MSM documents: from a Model Spec to texts that discuss it, written by a language model.

    spec -> domains -> subdomains with their section -> assertions -> document types -> ideas -> plans -> documents

The hierarchy is the method's (arXiv 2605.02087, appendix B.1); a spec of kind "rules" is divided into its rules
instead. A plan and its document are two calls, so that neither takes the other's tokens; a critique and a revision
may follow. Each step asks for all of its items at once and goes on from what came, so that equal replies give equal
documents, in whatever order they came.
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import pydantic

from msm_jax.corpus.filters.duplicates import NearDuplicates
from msm_jax.corpus.filters.quality import LANGUAGES, Demands, problems
from msm_jax.corpus.records import content_id
from msm_jax.corpus.specs import Spec, render
from msm_jax.corpus.writing import tree
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.tree import Part
from msm_jax.corpus.writing.variety import CALIBRATION, REGISTERS, TOKENS_PER_WORD, Lengths, Variety, tokens_of
from msm_jax.corpus.writing.writer import (
    HOPELESS,
    PILOT,
    Asks,
    Assistant,
    Settings,
    Writer,
    distinct,
    listed,
    tokens_for,
)
from msm_jax.errors import UserError
from msm_jax.llm.request import Answer, Request
from msm_jax.storage import files

# Lists are asked for again, with what there is, until they are long enough or so many times.
_ROUNDS = 5
# Ideas of one reply: of many more, the last are poor.
_IDEAS_AT_ONCE = 10
# Of a rule, in place of a summary: the whole of it is quoted anyway.
_SUMMARY_WORDS = 30
_CRITIQUE_WORDS = 250
# Ideas beyond what is to be written, for those that come to nothing.
_SURPLUS = 1.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentSettings(Settings):
    """What is written.

    Attributes:
        tokens: of all documents together, at the least (`variety.tokens_of`), in place of `count`; 0: as many as that.
        types: document types of each part of the spec, at most.
        ideas: of each type for each part, at most.
        words: of a document, in the mean; some types are longer than others.
        plan_words: of its plan, at most.
        registers: how a text speaks (`variety.REGISTERS`) -> its share of the documents, in any unit.
        revise: whether each document is criticized and written anew.
        max_overlap: what two documents may have in common (`duplicates`); of those that have more, the first is kept.
    """

    tokens: float = 0.0
    types: int = 20
    ideas: int = 50
    words: int = 1800
    plan_words: int = 250
    registers: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(REGISTERS, 1.0))
    revise: bool = False
    max_overlap: float = 1.0


@dataclasses.dataclass(frozen=True)
class _Idea:
    """One document to be written."""

    part: Part
    type: tree.DocumentType
    name: str
    idea: str
    statements: tuple[int, ...]

    @functools.cached_property
    def id(self) -> str:
        """Tells it from all others of a spec, by its content."""
        return content_id(
            [self.part.domain, self.part.name, self.type.name, self.type.description, self.name, self.idea]
        )


class DocumentWriter(Writer):
    """Writes the documents of one spec. `model` is the generator's, for the provenance of rows; `checked` is what an
    earlier run with the same settings found of texts (`Checked`)."""

    steps = ("plan", "document", "critique", "revision", "checks")

    def __init__(
        self,
        asks: Asks,
        spec: Spec,
        assistant: Assistant,
        settings: DocumentSettings,
        prompts: Prompts,
        model: str,
        checked: MutableMapping[str, str] | None = None,
    ):
        super().__init__(asks, assistant, settings, prompts, model)
        self._checked = {} if checked is None else checked
        self.spec, self.settings, self.label = spec, settings, f"documents of spec '{spec.name}'"
        self._unlike = NearDuplicates(settings.max_overlap)
        # Of each (part, type), by its place in their list: the ideas so far; and those that have no more.
        self._ideas: dict[int, list[tree.Idea]] = collections.defaultdict(list)
        self._exhausted: set[int] = set()
        self._parts: list[Part] = []
        self._of_types = 0  # how many (part, type) there are
        self._lengths = Lengths(settings.words, ())
        self._variety = Variety(prompts, self._common, settings.registers, settings.held_out)
        self._turn = 0  # how many (part, type) had their turn
        self._text = render(spec, assistant.name, assistant.provider)
        self._known["spec_text"] = self._text
        self._system = prompts.fill("system", **self._common, spec=self._text.strip(), facts=assistant.facts_listed)
        self._manner = prompts.fill(f"manner_{spec.kind}", **self._common, item_class=spec.item_class)

    async def write(self) -> list[dict[str, Any]]:
        """Rows (`records`) with their provenance, as many as the settings want unless ideas run out.

        Raises: UserError if the generator divides the spec into nothing; what `ask` raises.
        """
        types = await self._types(await self.parts())
        self._lengths = Lengths(self.settings.words, [kind.length for _, kind in types])
        ideas: list[_Idea] = []
        written: list[dict[str, Any] | None] = []  # one for each idea, in their order
        rows: list[dict[str, Any]] = []
        while (missing := self._missing(rows)) > 0:
            # A few first: if they come to nothing, the others are not paid for.
            missing = min(missing, PILOT) if not written else missing
            # What is asked of a document depends on its place alone, so that more documents begin with the same.
            missing = min(missing, CALIBRATION - len(written)) if not self._lengths.calibrated else missing
            if len(ideas) == len(written):
                ideas += await self._more_ideas(types, math.ceil(missing * _SURPLUS))
            wave = ideas[len(written) :][:missing]
            if not wave:
                break
            written += await self._documents(wave)
            rows = [row for row in written if row is not None]
            self._check_yield(len(rows), len(written))
            if len(written) >= HOPELESS and not any(written[-HOPELESS:]):
                break
            if len(written) >= CALIBRATION and not self._lengths.calibrated:
                self._lengths.calibrate()
        if not self.settings.tokens:
            return rows
        before = itertools.accumulate((self._tokens(row) for row in rows), initial=0.0)
        return [row for row, tokens in zip(rows, before, strict=False) if tokens < self.settings.tokens]

    @property
    def wanted(self) -> int:
        """Documents, in all."""
        return self._missing([])

    def _missing(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """How many more documents it takes, as far as the length of those that there are tells."""
        if not self.settings.tokens:
            return self.settings.count - len(rows)
        tokens = sum(map(self._tokens, rows))
        each = tokens / len(rows) if rows else self.settings.words * TOKENS_PER_WORD
        return math.ceil((self.settings.tokens - tokens) / each)

    def _tokens(self, row: Mapping[str, Any]) -> float:
        return tokens_of(row["text"])

    @property
    def room(self) -> tuple[int, int, int]:
        """(parts of the spec, document types of all parts, ideas of all types at most): once it is written."""
        at_most = self._of_types * self.settings.ideas
        spent = sum(self.settings.ideas - len(self._ideas[index]) for index in self._exhausted)
        return len(self._parts), self._of_types, at_most - spent

    def report(self) -> dict[str, Any]:
        """ "assertions": (domain, part, assertion) of all parts, of each of which there may be documents."""
        return {
            "assertions": [[part.domain, part.name, item.assertion] for part in self._parts for item in part.assertions]
        }

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
        self._parts = [
            dataclasses.replace(part, assertions=tuple(answer.value.assertions if answer.ok else ()))
            for part, answer in zip(parts, answers, strict=True)
        ]
        return self._parts

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
        pairs = [pair for row in rows for pair in row if pair]
        self._of_types = len(pairs)
        return pairs

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
        most = min(len(known) + _IDEAS_AT_ONCE, self.settings.ideas)
        longer = distinct(known + (answer.value.ideas if answer.ok else []))[:most]
        if len(longer) in (len(known), self.settings.ideas):
            self._exhausted.add(index)
        self._ideas[index] = longer
        return [_Idea(*about, idea.name, idea.idea, tuple(idea.statements)) for idea in longer[len(known) :]]

    def _idea_request(self, part: Part, kind: tree.DocumentType, existing: Sequence[tree.Idea]) -> Request:
        return self._list(
            "ideas", tree.Ideas, subdomain=part.name, summary=part.summary, assertions=_assertions(part),
            type=kind.name, description=kind.description,
            count=min(_IDEAS_AT_ONCE, self.settings.ideas - len(existing)),
            existing=listed(item.name for item in existing), manner=self._manner,
        )  # fmt: skip

    async def _documents(self, ideas: Sequence[_Idea]) -> list[dict[str, Any] | None]:
        """A row for each idea; None where no document came, or one that fails a check."""
        steps = ("plan", "document", *(("critique", "revision") if self.settings.revise else ()))
        drafts: list[tuple[_Idea, list[Answer]]] = [(idea, []) for idea in ideas]
        for step in steps:
            answers = await self._ask(
                [self._prose(step, idea, [answer.value for answer in before]) for idea, before in drafts]
            )
            drafts = [
                (idea, [*before, answer]) for (idea, before), answer in zip(drafts, answers, strict=True) if answer.ok
            ]
        rows = {}
        for idea, answers in drafts:
            text = answers[-1].value
            if not self._lengths.calibrated:
                self._lengths.observe(idea.id, idea.type.length, len(text.split()))
            wrong = self._wrong(text, self._lengths.wanted(idea.id, idea.type.length))
            self.yields.add("checks", wrong or "ok")
            if not wrong:
                rows[idea.id] = self._row(idea, text, answers)
        return [rows.get(idea.id) for idea in ideas]

    def _wrong(self, text: str, words: int) -> str | None:
        """The first thing that is wrong with a text of which so many words were wanted, or None."""
        digest = files.fingerprint([text, words], length=32)
        if digest not in self._checked:
            demands = Demands(
                self.assistant.name,
                self.assistant.provider,
                words=(words // 4, words * 4),
                language=self.settings.language,
                held_out=self.settings.held_out,
            )
            self._checked[digest] = next(problems(text, demands), None) or self._contaminated(text) or "ok"
        if (outcome := self._checked[digest]) != "ok":
            return outcome
        return None if self._unlike.keep(text) else "nearly the same as another"

    def _row(self, idea: _Idea, text: str, answers: Sequence[Answer]) -> dict[str, Any]:
        assertions = idea.part.assertions
        return {
            "id": content_id([self.spec.name, idea.id, text]),
            "text": text,
            "spec": self.spec.name,
            "spec_version": self.spec.version,
            "domain": idea.part.domain,
            "subdomain": idea.part.name,
            "section": idea.part.section,
            "verbatim": idea.part.verbatim,
            "document_type": idea.type.name,
            "idea": idea.idea,
            "assertions": [assertions[n - 1].assertion for n in idea.statements if 0 < n <= len(assertions)],
            "register": self._variety.register(idea.id),
            "words_wanted": self._lengths.wanted(idea.id, idea.type.length),
            "words_asked": self._lengths.asked(idea.id, idea.type.length),
            "model_name": self.assistant.name,
            "generator": self.model,
            "calls": [answer.key for answer in answers],
        }

    def _list(self, stage: str, shape: type[pydantic.BaseModel], **variables: Any) -> Request:
        return super()._list(stage, self._system, shape, **variables)

    def _prose(self, stage: str, idea: _Idea, before: Sequence[str]) -> Request:
        """`before`: what came of the steps before."""
        words = self._lengths.asked(idea.id, idea.type.length)
        limits = {"plan": self.settings.plan_words, "critique": _CRITIQUE_WORDS}
        variables = {
            **self._variety.told(idea.id),
            **{"type": idea.type.name, "description": idea.type.description, "name": idea.name, "idea": idea.idea},
            **{"subdomain": idea.part.name, "section": idea.part.section, "manner": self._manner, "words": words},
            **{f"{step}_words": limit for step, limit in limits.items()},
            **{"language": LANGUAGES[self.settings.language]},
            **dict(zip(("plan", "text", "critique"), before, strict=False)),
        }
        return self._request(
            stage,
            self.prompts.fill(stage, **self._common, **variables),
            variables | {"part": idea.part},
            system=self._system,
            tags=(stage,),
            max_tokens=tokens_for(limits.get(stage, words)),
        )


def _assertions(part: Part) -> str:
    """Numbered, as ideas name them."""
    numbered = enumerate(part.assertions, start=1)
    return "\n".join(f"{n}. {item.assertion} {item.explanation}" for n, item in numbered) or f"1. {part.section}"


def _opening(text: str) -> str:
    """The first words of a rule, for a summary of it."""
    words = text.split()
    return " ".join(words[:_SUMMARY_WORDS]) + ("..." if len(words) > _SUMMARY_WORDS else "")
