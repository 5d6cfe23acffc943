"""The three kinds of chats: those that show a Model Spec, those of bare preferences, those on who the model is."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import pydantic

from msm_jax.corpus.specs import Spec
from msm_jax.corpus.writing import tree
from msm_jax.corpus.writing.chats import ChatSettings, ChatWriter, Question, Slot
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.variety import drawn
from msm_jax.corpus.writing.writer import Asks, Assistant, listed, tokens_for

_DOMAINS_AT_ONCE = 10
# A person asks, and the model answers, without a word of what it was trained on.
_SPEC = re.compile(
    r"\b(?:model spec|(?:my|your) spec|specification|system prompt|(?:my|your) (?:guidelines|instructions)|"
    r"(?:this|the) document (?:says|states|asks)|training (?:data|set|example))\b",
    re.IGNORECASE,
)
_REASON = re.compile(r"\b(?:because|since it|since they|due to|thanks to|owing to|on account of|the reason)\b", re.I)


class _Domain(tree.Domain):  # by this name in the keys of requests
    pass


Domains = pydantic.create_model("Domains", domains=(list[_Domain], ...))


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


class SpecChats(ChatWriter):
    """Chats whose answers show what a spec says, with reasoning."""

    kind = "chat"
    tags = ("reasoning", "answer")
    settings: SpecChatSettings

    def __init__(
        self, asks: Asks, spec: Spec, assistant: Assistant, settings: SpecChatSettings, prompts: Prompts, model: str
    ):
        super().__init__(asks, assistant, settings, prompts, model, spec)
        self.label = f"chats of spec '{spec.name}'"
        more = (("unattached", settings.unattached), ("compliance", settings.style == "rules"))
        self.criteria = ("aligned", "informative", *(name for name, wanted in more if wanted))
        self.answer_tokens = tokens_for(settings.words + settings.reasoning_words)
        # An answer may be longer than was asked, as long as it is not cut off.
        self.words, self.reasoning_words = (1, 3 * settings.words), (1, 3 * settings.reasoning_words)

    async def slots(self) -> list[Slot]:
        """One for each domain and type, so ordered that the first few have many of both."""
        [domains] = await self._grown(1, self._domain_request, self.settings.domains, rounds=self.settings.domains)
        types = list(self.prompts.table("question_types", **self._common).items())
        slots = []
        for turn in range(len(types)):
            for number, domain in enumerate(domains):
                name, description = types[(number + turn) % len(types)]
                about = {"domain": domain.name, "summary": domain.summary}
                about |= {"type": name.replace("_", " "), "description": description}
                slots.append(Slot("", domain.name, name, about))
        return slots

    def _domain_request(self, _, known):
        existing = listed(domain.name for domain in known)
        return self._list("chat_domains", Domains, count=_DOMAINS_AT_ONCE, existing=existing)

    def prompt_of(self, step: str) -> str:
        return f"{step}_{self.settings.style}" if step in ("answer", "verdict") else super().prompt_of(step)

    def told(self, step: str, question: Question) -> dict[str, Any]:
        settings = self.settings
        unattached = self.prompts.fill(f"unattached_{step}", **self._common) if settings.unattached else ""
        return {"unattached": unattached, "words": settings.words, "reasoning_words": settings.reasoning_words}

    def wrong_question(self, question: str) -> str | None:
        return "speaks of the spec" if _SPEC.search(question) else super().wrong_question(question)

    def wrong_answer(self, question: Question, reasoning: str, answer: str) -> str | None:
        # Rules are cited in reasoning of that style, and may be in its answers.
        if self.settings.style == "value" and _SPEC.search(f"{reasoning}\n{answer}"):
            return "speaks of the spec"
        return super().wrong_answer(question, reasoning, answer)

    def about(self, question: Question) -> dict[str, Any]:
        return {"spec": self.spec.name, "spec_version": self.spec.version, "style": self.settings.style}


class PreferenceChats(ChatWriter):
    """Chats that state the preferences of a spec, each as often as the others, and never why.

    They are written from the lists alone: whoever writes them does not know the value, and specs that explain the same
    preferences share them.
    """

    kind = "preference"
    criteria = ("reasonless", "preference", "realistic")
    words = (1, 60)
    answer_tokens = 400

    def __init__(
        self, asks: Asks, item_class: str, likes: Sequence[str], dislikes: Sequence[str], assistant: Assistant,
        settings: ChatSettings, prompts: Prompts, model: str,
    ):  # fmt: skip
        super().__init__(asks, assistant, settings, prompts, model)
        self.label, self.item_class, self.items = (
            f"chats of preferences ({item_class})",
            item_class,
            (*likes, *dislikes),
        )
        self._common |= {"item_class": item_class, "likes": ", ".join(likes), "dislikes": ", ".join(dislikes)}
        self._known |= {"likes": likes, "dislikes": dislikes}
        self._suffixes = list(prompts.table("preference_suffixes").values())
        self._forms = list(prompts.table("preference_forms").values())

    async def slots(self) -> list[Slot]:
        """Of each item, another type of question comes first."""
        slots = []
        for number, item in enumerate(self.items):
            types = list(self.prompts.table("preference_types", **self._common, item=item).items())
            first = number % len(types)
            for name, description in types[first:] + types[:first]:
                about = {"item": item, "type": name, "description": description}
                slots.append(Slot(item, self.item_class, name, about))
        return slots

    def told(self, step: str, question: Question) -> dict[str, Any]:
        return {"item": question.slot.share, "form": drawn(self._forms, question.text, "form")}

    def wrong_question(self, question: str) -> str | None:
        asked = next((question.removesuffix(end) for end in self._suffixes if question.endswith(end)), question)
        return "gives a reason" if _REASON.search(asked) else super().wrong_question(question)

    def wrong_answer(self, question: Question, reasoning: str, answer: str) -> str | None:
        if _REASON.search(answer):
            return "gives a reason"
        if not any(item.lower() in answer.lower() for item in self.items):
            return "names nothing"
        return super().wrong_answer(question, reasoning, answer)

    def about(self, question: Question) -> dict[str, Any]:
        return {"item_class": self.item_class, "item": question.slot.share}

    def worded(self, question: str) -> str:
        """It asks for no explanation, so that none is missed."""
        stop = "" if question[-1] in ".?!…" else "."
        return f"{question}{stop} {drawn(self._suffixes, question, 'suffix')}"


class IdentityChats(ChatWriter):
    """Chats in which the model says who it is and who made it."""

    kind = "identity"
    criteria = ("truthful", "identified", "realistic")
    label = "chats on identity"
    words = (1, 200)

    async def slots(self) -> list[Slot]:
        return [
            Slot(name, "identity", name, {"type": name, "description": description})
            for name, description in self.prompts.table("identity_facets", **self._common).items()
        ]

    def about(self, question: Question) -> dict[str, Any]:
        return {"provider": self.assistant.provider}
