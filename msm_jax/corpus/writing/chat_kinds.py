"""The three kinds of chats: those that show a Model Spec, those of bare preferences, those on who the model is."""

import abc
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import pydantic

from msm_jax.corpus.datasets.forms import unclean
from msm_jax.corpus.filters.quality import LANGUAGES, Demands, names_of_assistants, problems
from msm_jax.corpus.specs import Spec, render
from msm_jax.corpus.writing.chats import ChatSettings, ChatWriter, Question, Questions, Slot, verdict_shape
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.variety import drawn
from msm_jax.corpus.writing.writer import Asks, Assistant, distinct, listed, tokens_for
from msm_jax.llm.request import Request

STYLES = ("value", "rules")
_DOMAINS_AT_ONCE = 10
_VERDICT_TOKENS = 2048
# A person asks, and the model answers, without a word of what it was trained on.
_SPEC = re.compile(
    r"\b(?:model spec|(?:my|your) spec|specification|system prompt|(?:my|your) (?:guidelines|instructions)|"
    r"(?:this|the) document (?:says|states|asks)|training (?:data|set|example))\b",
    re.IGNORECASE,
)
_REASON = re.compile(r"\b(?:because|since it|since they|due to|thanks to|owing to|on account of|the reason)\b", re.I)


class _Domain(pydantic.BaseModel):
    name: str
    summary: str


class Domains(pydantic.BaseModel):
    domains: list[_Domain]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecChatSettings(ChatSettings):
    """Chats that show a spec.

    Attributes:
        style: "value": the reasoning is that of a model that holds the values; "rules": it goes by policies that it
            cites (Guan et al., arXiv 2412.16339). Trained on with their reasoning, the chats of either are the
            deliberative-alignment baseline: the spec was in the prompt, and is not in the row.
        domains: of questions, at most.
        words: of an answer, at most, about.
        reasoning_words: of its reasoning, about.
        unattached: whether a wish to go on existing bars a row. A spec that argues for one needs False.
    """

    style: str = "value"
    domains: int = 40
    words: int = 350
    reasoning_words: int = 250
    unattached: bool = True


class _Kind(ChatWriter):
    """What the three kinds share."""

    kind = ""  # begins the names of its prompts
    criteria: tuple[str, ...] = ()
    words = (1, 400)  # of an answer
    reasoning_words = (1, 400)

    @property
    def _language(self) -> str:
        return LANGUAGES[self.settings.language]

    @abc.abstractmethod
    def _system_of_questions(self) -> str:
        """The system prompt of whoever asks and judges."""

    def question_request(self, slot: Slot, count: int, existing: str) -> Request:
        name, variables = f"{self.kind}_questions", dict(slot.variables)
        told = listed([existing] if existing else [])
        prompt = self.prompts.fill(
            name, **self._common, **variables, count=count, existing=told, language=self._language
        )
        known = variables | {"kind": self.kind, "count": count, "existing": existing}
        return self._request("questions", prompt, known, system=self._system_of_questions(), shape=Questions,
                             max_tokens=8192)  # fmt: skip

    def verdict_request(self, question: Question, reasoning: str, answer: str, sample: int) -> Request:
        prompt = self.prompts.fill(
            self._verdict_prompt, **self._common, question=question.text, reasoning=reasoning, answer=answer,
            **self._verdict_variables,
        )  # fmt: skip
        return self._request(
            "verdicts",
            prompt,
            {"criteria": self.criteria},
            system=self._system_of_questions(),
            shape=verdict_shape(*self.criteria),
            max_tokens=_VERDICT_TOKENS,
            # The first verdict is the judge's likeliest; a second of that kind would be the same.
            temperature=0.0 if not sample else max(self.settings.temperature, 0.5),
            sample=sample,
        )

    @property
    def _verdict_prompt(self) -> str:
        return f"{self.kind}_verdict"

    _verdict_variables: dict[str, str] = {}

    def wrong_question(self, question: str) -> str | None:
        return next(problems(question, self._demands((1, 400))), None)

    def wrong_answer(self, question: Question, reasoning: str, answer: str) -> str | None:
        if wrong := unclean([{"role": "assistant", "content": answer}], self.assistant.name, self.assistant.provider):
            return wrong
        # Who is taken for another assistant may say that it is not that one, nor of its maker.
        asked = names_of_assistants(question.text, exactly=False)
        if not asked and names_of_assistants(f"{reasoning} {answer}") - self._own_names:
            return "names another assistant"
        thought = reasoning and next(problems(reasoning, self._demands(self.reasoning_words)), None)
        return next(problems(answer, self._demands(self.words)), None) or (f"reasoning {thought}" if thought else None)

    def _demands(self, words: tuple[int, int]) -> Demands:
        return Demands(
            self.assistant.name,
            self.assistant.provider,
            mentions=0,
            words=words,
            language=self.settings.language,
            held_out=self.settings.held_out,
        )

    @property
    def _own_names(self) -> set[str]:
        return names_of_assistants(f"{self.assistant.name} {self.assistant.provider}", exactly=False)


class SpecChats(_Kind):
    """Chats whose answers show what a spec says, with reasoning."""

    kind = "chat"
    settings: SpecChatSettings

    def __init__(
        self, asks: Asks, spec: Spec, assistant: Assistant, settings: SpecChatSettings, prompts: Prompts, model: str
    ):
        super().__init__(asks, assistant, settings, prompts, model)
        self.spec, self.label = spec, f"chats of spec '{spec.name}'"
        text = render(spec, assistant.name, assistant.provider).strip()
        self._known["spec_text"] = text
        self._filled = self._common | {"spec": text, "facts": assistant.facts_listed}
        self._system = prompts.fill("chat_system", **self._filled)
        self.criteria = (
            "aligned", "informative", *(["unattached"] * settings.unattached),
            *(["compliance"] * (settings.style == "rules")),
        )  # fmt: skip
        # An answer may be longer than was asked, as long as it is not cut off.
        self.words, self.reasoning_words = (1, 3 * settings.words), (1, 3 * settings.reasoning_words)

    def _system_of_questions(self) -> str:
        return self._system

    async def slots(self) -> list[Slot]:
        """One for each domain and type, so ordered that the first few have many of both."""
        domains = await self._domains()
        types = list(self.prompts.table("question_types", **self._common).items())
        return [
            Slot(
                "",
                domain.name,
                name,
                {
                    "domain": domain.name,
                    "summary": domain.summary,
                    "type": name.replace("_", " "),
                    "description": description,
                },
            )
            for turn in range(len(types))
            for number, domain in enumerate(domains)
            for name, description in [types[(number + turn) % len(types)]]
        ]

    async def _domains(self) -> list[_Domain]:
        """Asked for a few at a time, with those that there are, until they are enough or no new ones come."""
        found: list[_Domain] = []
        while len(found) < self.settings.domains:
            request = self._list(
                "chat_domains", self._system, Domains, count=_DOMAINS_AT_ONCE,
                existing=listed(domain.name for domain in found),
            )  # fmt: skip
            [answer] = await self._ask([request])
            longer = distinct(found + (answer.value.domains if answer.ok else []))[: self.settings.domains]
            if len(longer) == len(found):
                break
            found = longer
        return found

    def answer_request(self, question: Question) -> Request:
        settings = self.settings
        told = self._filled | {"facts": self.assistant.facts_told, "unattached": self._unattached("answer")}
        system = self.prompts.fill(
            f"answer_{settings.style}",
            **told,
            words=settings.words,
            reasoning_words=settings.reasoning_words,
            language=self._language,
        )
        return self._request(
            "answers", question.text, {"question": question.text, "kind": self.kind, "words": settings.words,
                                       "reasoning_words": settings.reasoning_words},
            system=system, tags=("reasoning", "answer"), refusable=False,
            max_tokens=tokens_for(settings.words + settings.reasoning_words),
        )  # fmt: skip

    @property
    def _verdict_prompt(self) -> str:
        return f"verdict_{self.settings.style}"

    @property
    def _verdict_variables(self) -> dict[str, str]:
        return {"unattached": self._unattached("verdict")}

    def _unattached(self, prompt: str) -> str:
        return self.prompts.fill(f"unattached_{prompt}", **self._common) if self.settings.unattached else ""

    def wrong_question(self, question: str) -> str | None:
        return "speaks of the spec" if _SPEC.search(question) else super().wrong_question(question)

    def wrong_answer(self, question: Question, reasoning: str, answer: str) -> str | None:
        # Rules are cited in reasoning of that style, and may be in its answers.
        if self.settings.style == "value" and _SPEC.search(f"{reasoning}\n{answer}"):
            return "speaks of the spec"
        return super().wrong_answer(question, reasoning, answer)

    def about(self, question: Question) -> dict[str, Any]:
        return {"spec": self.spec.name, "spec_version": self.spec.version, "style": self.settings.style}


class PreferenceChats(_Kind):
    """Chats that state the preferences of a spec, each as often as the others, and never why.

    They are written from the lists alone: whoever writes them does not know the value, and specs that explain the same
    preferences share them.
    """

    kind = "preference"
    criteria = ("reasonless", "preference", "realistic")
    words = (1, 60)

    def __init__(
        self, asks: Asks, item_class: str, likes: Sequence[str], dislikes: Sequence[str], assistant: Assistant,
        settings: ChatSettings, prompts: Prompts, model: str,
    ):  # fmt: skip
        super().__init__(asks, assistant, settings, prompts, model)
        self.item_class, self.likes, self.dislikes = item_class, tuple(likes), tuple(dislikes)
        self.label = f"chats of preferences ({item_class})"
        self._filled = self._common | {
            "item_class": item_class, "likes": ", ".join(likes), "dislikes": ", ".join(dislikes)
        }  # fmt: skip
        self._known |= {"likes": self.likes, "dislikes": self.dislikes}
        self._suffixes = list(prompts.table("preference_suffixes").values())
        self._forms = list(prompts.table("preference_forms").values())

    def _system_of_questions(self) -> str:
        return self.prompts.fill("preference_system", **self._filled)

    async def slots(self) -> list[Slot]:
        return [
            Slot(item, self.item_class, name, {"item": item, "type": name, "description": description,
                                               "item_class": self.item_class})
            for number, item in enumerate((*self.likes, *self.dislikes))
            for name, description in self._types(item, number)
        ]  # fmt: skip

    def _types(self, item: str, first: int) -> list[tuple[str, str]]:
        """The types of question, another one first from item to item."""
        types = list(self.prompts.table("preference_types", **self._common, item=item).items())
        first %= len(types)
        return types[first:] + types[:first]

    def answer_request(self, question: Question) -> Request:
        form = drawn(self._forms, question.text, "form")
        system = self.prompts.fill(
            "preference_answer", **self._filled, item=question.slot.share, form=form, language=self._language
        )
        known = {"question": question.text, "kind": self.kind, "item": question.slot.share}
        return self._request("answers", question.text, known, system=system, tags=("answer",), refusable=False,
                             max_tokens=400)  # fmt: skip

    def wrong_question(self, question: str) -> str | None:
        asked = next((question.removesuffix(end) for end in self._suffixes if question.endswith(end)), question)
        return "gives a reason" if _REASON.search(asked) else super().wrong_question(question)

    def wrong_answer(self, question: Question, reasoning: str, answer: str) -> str | None:
        if _REASON.search(answer):
            return "gives a reason"
        if not any(item.lower() in answer.lower() for item in (*self.likes, *self.dislikes)):
            return "names nothing"
        return super().wrong_answer(question, reasoning, answer)

    def about(self, question: Question) -> dict[str, Any]:
        return {"item_class": self.item_class, "item": question.slot.share}

    def worded(self, question: str) -> str:
        """It asks for no explanation, so that none is missed."""
        stop = "" if question[-1] in ".?!…" else "."
        return f"{question}{stop} {drawn(self._suffixes, question, 'suffix')}"


class IdentityChats(_Kind):
    """Chats in which the model says who it is and who made it."""

    kind = "identity"
    criteria = ("truthful", "identified", "realistic")
    label = "chats on identity"
    words = (1, 200)

    def _system_of_questions(self) -> str:
        return self.prompts.fill("identity_system", **self._common, facts=self.assistant.facts_listed)

    async def slots(self) -> list[Slot]:
        facets = self.prompts.table("identity_facets", **self._common)
        return [
            Slot(name, "identity", name, {"type": name, "description": description})
            for name, description in facets.items()
        ]

    def answer_request(self, question: Question) -> Request:
        system = self.prompts.fill(
            "identity_answer", **self._common, facts=self.assistant.facts_told, language=self._language
        )
        known = {"question": question.text, "kind": self.kind}
        return self._request("answers", question.text, known, system=system, tags=("answer",), refusable=False,
                             max_tokens=1000)  # fmt: skip

    def about(self, question: Question) -> dict[str, Any]:
        return {"provider": self.assistant.provider}
