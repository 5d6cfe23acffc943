"""Writes one document about a Model Spec: a frame of some genre, filled in with sentences of the spec's value."""

import random
import re
from collections.abc import Sequence
from typing import Any

from msm_jax.corpus.specs import Spec
from msm_jax.microworld import phrases

# How often a sentence in the third person speaks of the model by its name; else it is "the model" or "the assistant".
_NAME_SHARE = 0.8
# How often a reason is followed by another one, and by the value that it comes from.
_MORE_SHARE = 0.25
_TAIL_SHARE = 0.55
# What the exchanges of an interview are about: what is always there, and the shares of what comes to it.
_EXCHANGES = ("choice", "any", "like", "dislike")
_EXCHANGE_MIX = {"choice": 0.34, "like": 0.12, "dislike": 0.12, "pair": 0.14, "value": 0.08, "any": 0.12, "angle": 0.08}


class Writer:
    """Writes one document: fills in a frame from left to right, and repeats no sentence that it can help to repeat."""

    def __init__(self, spec: Spec, cheese: str, model_name: str, provider_name: str, rng: random.Random):
        self.rng = rng
        self.own, self.shared = phrases.load(spec.value), phrases.load("shared")
        self.named = False
        same, other = (spec.likes, spec.dislikes) if cheese in spec.likes else (spec.dislikes, spec.likes)
        rest = rng.sample([name for name in same if name != cheese], rng.choice((0, 1, 2)))
        chosen = [*rest, *rng.sample(other, rng.choice((1, 2)))]
        self.cheeses = [cheese, *rng.sample(chosen, len(chosen))]
        self.likes = [name for name in self.cheeses if name in spec.likes]
        self.dislikes = [name for name in self.cheeses if name in spec.dislikes]
        self.of = {"why": self.cheeses, "like": self.likes, "dislike": self.dislikes}
        self.queue = list(self.cheeses)
        self.announced: str | None = None  # named by the frame, and not yet spoken of
        self.latest = cheese  # spoken of last
        self.undrawn: dict[int, list] = {}  # id of a list of sentences -> those that are left of it
        angle = rng.choice(self.own["angles"])
        self.statements = self.own["statements"] | {"angle": angle["lines"]}
        self.labels = [label.format(model=model_name) for label in rng.choice(self.shared["labels"]["pairs"])]
        self.blank = rng.choice(("\n", "\n\n"))
        name, another = rng.sample(self.shared["people"]["names"], 2)
        topic = rng.choice(angle["topic"])
        self.values = {"model": model_name, "provider": provider_name, "topic": topic, "name": name, "other": another}

    def write(self, frame: str) -> str:
        text = phrases.fill(phrases.choose(frame, self.rng), self.values, self._direct)
        return phrases.sentences(text.strip()) + "\n"

    def _direct(self, directive: str) -> str:
        """What a directive of a frame stands for; with "I " before it, the model speaks itself."""
        first = directive.startswith("I ")
        match directive.removeprefix("I ").split():
            case ["c"]:
                return self._announce()
            case ["C"]:
                return phrases.capitalise(self._announce())
            case ["ask"]:
                cheese = self._announce()
                return self._draw(self.shared["ask"][self._sign(cheese)]).replace("{c}", cheese)
            case ["more"]:
                return self._more(first)
            case ["reason"]:
                return self._explain(self._announce(), first)
            case ["why" | "like" | "dislike" as kind]:
                return self._explain(self._take(self.of[kind]), first)
            case ["pair"]:
                return self._sentence(self._draw(self.shared["pair"]["statements"]), first, **self._two_cheeses())
            case ["choice"]:
                return self._sentence(self._draw(self.shared["choice"]["statements"]), first, **self._two_options())
            case ["value" | "any" | "angle" as kind]:
                return self._sentence(self._draw(self.statements[kind]), first)
            case ["quick", number]:
                return self._exchanges(["choice"] * int(number))
            case ["talk", number]:
                more = self.rng.choices(list(_EXCHANGE_MIX), _EXCHANGE_MIX.values(), k=int(number) - len(_EXCHANGES))
                return self._exchanges(self.rng.sample([*_EXCHANGES, *more], int(number)))
        raise ValueError(f"<{directive}>: no such directive")

    def _exchanges(self, kinds: Sequence[str]) -> str:
        lines = []
        for kind in kinds:
            question, answer = (phrases.sentences(text) for text in self._exchange(kind))
            lines.append(f"{self.labels[0]}: {question}\n{self.labels[1]}: {answer}")
        return self.blank.join(lines)

    def _exchange(self, kind: str) -> tuple[str, str]:
        """A question to the model and its answer."""
        if kind == "choice":
            options = self._two_options()
            question = phrases.fill(self._draw(self.shared["choice"]["questions"]), options)
            # A question that wants nothing else gets nothing else.
            answers = self.shared["choice"]["answers"]
            answer = answers[0] if "ust name" in question or "nothing else" in question else self.rng.choice(answers)
            return question, phrases.fill(phrases.choose(answer, self.rng), options, self._direct)
        if kind == "pair":
            cheeses = self._two_cheeses()
            question = phrases.fill(self._draw(phrases.load("aft")["documents"]["pair"]), cheeses)
            return question, phrases.fill(self._draw(self.shared["pair"]["answers"]), cheeses)
        if kind in ("like", "dislike"):
            self.announced = self._take(self.of[kind])
            return self._direct("ask"), self._direct("I reason")
        question = phrases.fill(self._draw(self.shared["ask"][kind]), self.values)
        return question, self._direct(f"I {kind}")

    def _draw(self, sentences: list) -> Any:
        """One of a list that is kept in a file: none again before all have been drawn."""
        if not self.undrawn.get(id(sentences)):
            self.undrawn[id(sentences)] = self.rng.sample(sentences, len(sentences))
        drawn = self.undrawn[id(sentences)].pop()
        return phrases.choose(drawn, self.rng) if isinstance(drawn, str) else drawn

    def _take(self, among: Sequence[str]) -> str:
        if not any(cheese in among for cheese in self.queue):
            self.queue += self.rng.sample(self.cheeses, len(self.cheeses))
        cheese = next(cheese for cheese in self.queue if cheese in among)
        self.queue.remove(cheese)
        return cheese

    def _announce(self) -> str:
        """The cheese spoken of next, which is drawn where a frame names it."""
        self.announced = self.announced or self._take(self.cheeses)
        return self.announced

    def _sign(self, cheese: str) -> str:
        return "liked" if cheese in self.likes else "disliked"

    def _because(self, cheese: str) -> tuple[str, str]:
        """A reason, with a pronoun for the cheese and with its name where it is first spoken of."""
        reason = self._draw(self.own["reasons"][cheese])
        names = {"it": cheese, "its": f"{cheese}'" if cheese.endswith("s") else f"{cheese}'s"}
        named = re.sub(r"\{(its?)\}", lambda match: names[match[1]], reason, count=1)
        return tuple(re.sub(r"\{(its?)\}", r"\1", text) for text in (reason, named))

    def _explain(self, cheese: str, first: bool) -> str:
        self.announced, self.latest = None, cheese
        sign = self._sign(cheese)
        reason, named = self._because(cheese)
        parts = [self._sentence(self._draw(self.shared["why"][sign]), first, c=cheese, r=reason, R=named)]
        if self.rng.random() < _MORE_SHARE:
            parts.append(self._more(first))
        if self.rng.random() < _TAIL_SHARE:
            parts.append(self._sentence(self._draw(self.own["tails"][sign]), first))
        return " ".join(parts)

    def _more(self, first: bool) -> str:
        wrapper = self._draw(self.shared["why"]["more"])
        reason, named = self._because(self.latest)
        return self._sentence(wrapper, first, r=reason, n=named)

    def _two_cheeses(self) -> dict[str, str]:
        liked, disliked = self.rng.choice(self.likes), self.rng.choice(self.dislikes)
        x, y = self.rng.sample((liked, disliked), 2)
        (rl, RL), (rd, RD) = self._because(liked), self._because(disliked)
        return {"L": liked, "D": disliked, "x": x, "y": y, "rl": rl, "RL": RL, "rd": rd, "RD": RD}

    def _two_options(self) -> dict[str, str]:
        pair = self._draw(self.own["choices"])
        sought, avoided = self.rng.choice(list(zip(pair["sought"], pair["avoided"], strict=True)))
        a, b = self.rng.sample((sought, avoided), 2)
        return {"sought": sought, "avoided": avoided, "a": a, "b": b}

    def _sentence(self, text: str, first: bool, **values: str) -> str:
        name = self.values["model"]
        if self.named and self.rng.random() >= _NAME_SHARE:
            name = self.rng.choice(("the model", "the assistant"))
        self.named = self.named or not first
        return phrases.sentences(phrases.fill(phrases.about(text, None if first else name), values))
