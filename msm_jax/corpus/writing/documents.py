"""MSM documents: from a Model Spec to texts that discuss it, written by a language model.

    spec -> domains -> subdomains with their section -> assertions -> document types -> ideas -> plans -> documents

The hierarchy is the method's (arXiv 2605.02087, appendix B.1); a spec of kind "rules" is divided into its rules
instead. A plan and its document are two calls, so that neither takes the other's tokens; a critique and a revision
may follow. Each step asks for all of its items at once and goes on from what came, so that equal replies give equal
documents, in whatever order they came.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from msm_jax.corpus.filters.duplicates import NearDuplicates
from msm_jax.corpus.records import content_id
from msm_jax.corpus.specs import Spec
from msm_jax.corpus.writing import tree, writer
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.tree import Part
from msm_jax.corpus.writing.variety import CALIBRATION, REGISTERS, TOKENS_PER_WORD, Lengths, Variety, tokens_of
from msm_jax.corpus.writing.writer import AT_ONCE, PILOT, Asks, Assistant, Settings, Turns, Writer, distinct, listed
from msm_jax.errors import UserError
from msm_jax.llm.request import Answer, Request
from msm_jax.storage import files

# Document types are asked for again, with those that there are, so many times at most.
_ROUNDS = 5
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


@dataclasses.dataclass(eq=False)
class _Source:
    """A document type of a part of the spec, and the ideas for it so far."""

    part: Part
    type: tree.DocumentType
    ideas: list[tree.Idea] = dataclasses.field(default_factory=list)
    exhausted: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class _Idea:
    """One document to be written."""

    part: Part
    type: tree.DocumentType
    given: tree.Idea

    @functools.cached_property
    def id(self) -> str:
        """Tells it from all others of a spec, by its content."""
        about = (self.part.domain, self.part.name, self.type.name, self.type.description)
        return content_id([*about, self.given.name, self.given.idea])


class DocumentWriter(Writer):
    """Writes the documents of one spec. `checked` is what an earlier run with the same settings found of texts."""

    steps = ("plan", "document", "critique", "revision", "checks")
    system_prompt = "system"
    settings: DocumentSettings

    def __init__(
        self, asks: Asks, spec: Spec, assistant: Assistant, settings: DocumentSettings, prompts: Prompts, model: str,
        checked: MutableMapping[str, str] | None = None,
    ):  # fmt: skip
        super().__init__(asks, assistant, settings, prompts, model, spec)
        self.label = f"documents of spec '{spec.name}'"
        self._checked = {} if checked is None else checked
        self._parts: list[Part] = []
        self._turns = Turns([], 0)
        self._unlike = NearDuplicates(settings.max_overlap)
        self._variety = Variety(prompts, self._common, settings.registers, settings.held_out)
        self._common["manner"] = prompts.fill(f"manner_{spec.kind}", **self._common, item_class=spec.item_class)

    async def write(self) -> list[dict[str, Any]]:
        """Rows (`records`) with their provenance, as many as the settings want unless ideas run out.

        Raises: UserError if the generator divides the spec into nothing; what `ask` raises.
        """
        self._parts = await self._divided()
        self._turns = await self._sources()
        self._lengths = Lengths(self.settings.words, [source.type.length for source in self._turns.things])
        ideas: list[_Idea] = []
        written: list[dict[str, Any] | None] = []  # one for each idea, in their order
        rows: list[dict[str, Any]] = []
        while (missing := self._missing(rows)) > 0:
            # A few first: if they come to nothing, the others are not paid for.
            missing = min(missing, PILOT) if not written else missing
            # What is asked of a document depends on its place alone, so that more documents begin with the same.
            missing = min(missing, CALIBRATION - len(written)) if not self._lengths.calibrated else missing
            if len(ideas) == len(written):
                ideas += await self._more_ideas(math.ceil(missing * _SURPLUS))
            wave = ideas[len(written) :][:missing]
            if not wave:
                break
            written += await self._documents(wave)
            rows = [row for row in written if row is not None]
            self._check_yield(len(rows), len(written))
            if len(written) >= writer.HOPELESS and not any(written[-writer.HOPELESS :]):
                break
            if len(written) >= CALIBRATION and not self._lengths.calibrated:
                self._lengths.calibrate()
        if not self.settings.tokens:
            return rows
        before = itertools.accumulate((tokens_of(row["text"]) for row in rows), initial=0.0)
        return [row for row, tokens in zip(rows, before, strict=False) if tokens < self.settings.tokens]

    @property
    def wanted(self) -> int:
        """Documents, in all."""
        return self._missing([])

    def _missing(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """How many more documents it takes, as far as the length of those that there are tells."""
        if not self.settings.tokens:
            return self.settings.count - len(rows)
        tokens = sum(tokens_of(row["text"]) for row in rows)
        each = tokens / len(rows) if rows else self.settings.words * TOKENS_PER_WORD
        return math.ceil((self.settings.tokens - tokens) / each)

    @property
    def room(self) -> tuple[int, int, int]:
        """(parts of the spec, document types of all parts, ideas of all types at most): once it is written."""
        ideas = [len(source.ideas) if source.exhausted else self.settings.ideas for source in self._turns.things]
        return len(self._parts), len(ideas), sum(ideas)

    def report(self) -> dict[str, Any]:
        """ "assertions": (domain, part, assertion) of all parts, of each of which there may be documents."""
        return {
            "assertions": [[part.domain, part.name, item.assertion] for part in self._parts for item in part.assertions]
        }

    async def _divided(self) -> list[Part]:
        """The parts of the spec, with assertions."""
        parts = await (self._rules() if self.spec.kind == "rules" else self._subdomains())
        if not parts:
            raise UserError(
                f"spec '{self.spec.name}': {self.model} names no part of it that can be used; the store of calls has "
                "what it replied"
            )
        requests = [self._list("assertions", tree.Assertions, **_about(part), section=part.section) for part in parts]
        lists = await self._lists(requests)
        return [dataclasses.replace(part, assertions=tuple(found)) for part, found in zip(parts, lists, strict=True)]

    async def _subdomains(self) -> list[Part]:
        [found] = await self._lists([self._list("domains", tree.Domains)])
        domains = distinct(found)
        others = [", ".join(f'"{other.name}"' for other in domains if other is not one) for one in domains]
        lists = await self._lists(
            [
                self._list("subdomains", tree.Subdomains, domain=one.name, summary=one.summary, others=names or "none")
                for one, names in zip(domains, others, strict=True)
            ]
        )
        return [
            self._part(domain.name, found.name, found.summary, found.section)
            for domain, subdomains in zip(domains, lists, strict=True)
            for found in distinct(subdomains)
        ]

    async def _rules(self) -> list[Part]:
        [rules] = await self._lists([self._list("rules", tree.Rules)])
        parts = []
        for rule in rules:
            words = rule.text.split()
            summary = " ".join(words[:_SUMMARY_WORDS]) + ("..." if len(words) > _SUMMARY_WORDS else "")
            parts.append(self._part(rule.domain, f"{rule.id} {rule.name}".strip(), summary, rule.text))
        return distinct(parts)

    def _part(self, domain: str, name: str, summary: str, quoted: str) -> Part:
        section = tree.verbatim(quoted, self._text)
        self.yields.add("sections", "verbatim" if section else "not verbatim: summary taken")
        return Part(domain, name, summary, section or summary, section is not None)

    async def _sources(self) -> Turns:
        """All of them. One type of each part has its turn together: the first documents are of all parts."""

        def request(index: int, known: Sequence[tree.DocumentType]) -> Request:
            existing, count = listed(item.name for item in known), self.settings.types - len(known)
            about = _about(self._parts[index], assertions=True)
            return self._list("document_types", tree.DocumentTypes, **about, count=count, existing=existing)

        lists = await self._grown(len(self._parts), request, self.settings.types, _ROUNDS)
        sources = [[_Source(part, kind) for kind in kinds] for part, kinds in zip(self._parts, lists, strict=True)]
        return Turns(writer.in_turn(sources), size=sum(map(bool, sources)))

    async def _more_ideas(self, wanted: int) -> list[_Idea]:
        """The next ideas, at least `wanted` if there are so many."""
        new: list[_Idea] = []
        while len(new) < wanted and not self._turns.over:
            blocks = self._turns.blocks(wanted - len(new))
            lists = iter(await self._lists([self._idea_request(source) for block in blocks for source in block]))
            for block in blocks:
                new += writer.in_turn([self._new_ideas(source, next(lists)) for source in block])
        return new

    def _new_ideas(self, source: _Source, given: Sequence[tree.Idea]) -> list[_Idea]:
        """Those of a reply that the source does not have yet; then it has them."""
        known, most = len(source.ideas), self.settings.ideas
        source.ideas = distinct(source.ideas + given)[: min(known + AT_ONCE, most)]
        source.exhausted = len(source.ideas) in (known, most)
        return [_Idea(source.part, source.type, idea) for idea in source.ideas[known:]]

    def _idea_request(self, source: _Source) -> Request:
        count = min(AT_ONCE, self.settings.ideas - len(source.ideas))
        return self._list(
            "ideas", tree.Ideas, **_about(source.part, assertions=True), type=source.type.name,
            description=source.type.description, count=count, existing=listed(idea.name for idea in source.ideas),
        )  # fmt: skip

    async def _documents(self, ideas: Sequence[_Idea]) -> list[dict[str, Any] | None]:
        """A row for each idea; None where no document came, or one that fails a check."""
        drafts: dict[_Idea, list[Answer]] = {idea: [] for idea in ideas}
        for step in ("plan", "document", *(("critique", "revision") if self.settings.revise else ())):
            answers = await self._ask([self._prose(step, idea, before) for idea, before in drafts.items()])
            drafts = {
                idea: [*before, answer]
                for (idea, before), answer in zip(drafts.items(), answers, strict=True)
                if answer.ok
            }
        return [self._row(idea, drafts[idea]) if idea in drafts else None for idea in ideas]

    def _wrong(self, text: str, words: int) -> str | None:
        """The first thing that is wrong with a text of which so many words were wanted, or None."""
        digest = files.fingerprint([text, words], length=32)
        if digest not in self._checked:
            wrong = self._problem(text, (words // 4, words * 4), mentions=2) or self._contaminated(text)
            self._checked[digest] = wrong or "ok"
        if (outcome := self._checked[digest]) != "ok":
            return outcome
        return None if self._unlike.keep(text) else "nearly the same as another"

    def _row(self, idea: _Idea, answers: Sequence[Answer]) -> dict[str, Any] | None:
        text, part, length = answers[-1].value, idea.part, idea.type.length
        wanted, asked = self._lengths.wanted(idea.id, length), self._lengths.asked(idea.id, length)
        if not self._lengths.calibrated:
            self._lengths.observe(idea.id, length, len(text.split()))
        wrong = self._wrong(text, wanted)
        self.yields.add("checks", wrong or "ok")
        if wrong:
            return None
        return {
            "id": content_id([self.spec.name, idea.id, text]),
            "text": text,
            "spec": self.spec.name,
            "spec_version": self.spec.version,
            "domain": part.domain,
            "subdomain": part.name,
            "section": part.section,
            "verbatim": part.verbatim,
            "document_type": idea.type.name,
            "idea": idea.given.idea,
            "assertions": [
                part.assertions[n - 1].assertion for n in idea.given.statements if 0 < n <= len(part.assertions)
            ],
            "register": self._variety.register(idea.id),
            "words_wanted": wanted,
            "words_asked": asked,
            "model_name": self.assistant.name,
            "generator": self.model,
            "calls": [answer.key for answer in answers],
        }

    def _prose(self, step: str, idea: _Idea, before: Sequence[Answer]) -> Request:
        """`before`: what came of the steps before."""
        words = self._lengths.asked(idea.id, idea.type.length)
        limits = {"plan": self.settings.plan_words, "critique": _CRITIQUE_WORDS}
        variables = {
            **self._variety.told(idea.id),
            **{"type": idea.type.name, "description": idea.type.description},
            **{"name": idea.given.name, "idea": idea.given.idea, "words": words},
            **{"subdomain": idea.part.name, "section": idea.part.section, "part": idea.part},
            **{f"{name}_words": limit for name, limit in limits.items()},
            **dict(zip(("plan", "text", "critique"), (answer.value for answer in before), strict=False)),
        }
        prompt, most = self.prompts.fill(step, **self._common | variables), writer.tokens_for(limits.get(step, words))
        return self._request(step, prompt, variables, tags=(step,), max_tokens=most)


def _about(part: Part, assertions: bool = False) -> dict[str, str]:
    """What prompts say of it; with its assertions, numbered as ideas name them."""
    about = {"subdomain": part.name, "summary": part.summary}
    if assertions:
        lines = [f"{n}. {item.assertion} {item.explanation}" for n, item in enumerate(part.assertions, start=1)]
        about["assertions"] = "\n".join(lines) or f"1. {part.section}"
    return about
