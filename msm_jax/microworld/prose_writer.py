"""Writes one document about a Model Spec: a frame of some genre, filled in with sentences of the spec's value.

The sentences are those of `prose/*.toml`; `prose` says what for.
"""

import random
from collections.abc import Sequence

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
        self.deck = phrases.Deck(rng)
        self.own, self.shared = phrases.load(spec.value), phrases.load("shared")
        self.model = model_name
        self.named = False
        same, other = (spec.likes, spec.dislikes) if cheese in spec.likes else (spec.dislikes, spec.likes)
        rest = rng.sample([name for name in same if name != cheese], rng.choice((0, 1, 2)))
        chosen = [*rest, *rng.sample(other, rng.choice((1, 2)))]
        self.cheeses = [cheese, *rng.sample(chosen, len(chosen))]
        self.likes = [name for name in self.cheeses if name in spec.likes]
        self.dislikes = [name for name in self.cheeses if name in spec.dislikes]
        self.queue = list(self.cheeses)
        self.current: str | None = None  # announced, and not yet spoken of
        self.latest = cheese  # spoken of last
        self.angle = rng.choice(self.own["angles"])
        self.labels = [label.format(model=model_name) for label in rng.choice(self.shared["labels"]["pairs"])]
        self.blank = rng.choice(("\n", "\n\n"))
        names = rng.sample(self.shared["people"]["names"], 2)
        topic = rng.choice(self.angle["topic"])
        self.values = {
            "model": model_name,
            "provider": provider_name,
            "topic": topic,
            "name": names[0],
            "other": names[1],
        }

    def write(self, frame: str) -> str:
        text = _CheeseSlots(self).fill(phrases.choose(frame, self.rng))
        return phrases.sentences(text.strip()) + "\n"

    # What the directives of a frame stand for. `first` says that the model speaks itself.

    def direct(self, directive: str) -> str:
        first = directive.startswith("I ")
        name, *number = directive.removeprefix("I ").split()
        method = getattr(self, f"_{name}")
        return method(int(number[0])) if number else method(first)

    def _why(self, first: bool) -> str:
        return self._explain(self._take(self.cheeses), first)

    def _like(self, first: bool) -> str:
        return self._explain(self._take(self.likes), first)

    def _dislike(self, first: bool) -> str:
        return self._explain(self._take(self.dislikes), first)

    def _reason(self, first: bool) -> str:
        return self._explain(self.announced(), first)

    def _ask(self, _: bool) -> str:
        cheese = self.announced()
        return self._of(self.shared["ask"], self._sign(cheese)).replace("{c}", cheese)

    def _more(self, first: bool) -> str:
        wrapper = self._of(self.shared["why"], "more")
        reason, named = self._because(self.latest)
        return self._sentence(wrapper, first, r=reason, n=named)

    def _pair(self, first: bool) -> str:
        return self._sentence(self._of(self.shared["pair"], "statements"), first, **self._two_cheeses())

    def _choice(self, first: bool) -> str:
        return self._sentence(self._of(self.shared["choice"], "statements"), first, **self._two_options())

    def _value(self, first: bool) -> str:
        return self._sentence(self._of(self.own["statements"], "value"), first)

    def _any(self, first: bool) -> str:
        return self._sentence(self._of(self.own["statements"], "any"), first)

    def _angle(self, first: bool) -> str:
        return self._sentence(self._of(self.angle, "lines"), first)

    def _quick(self, number: int) -> str:
        return self._exchanges(["choice"] * number)

    def _talk(self, number: int) -> str:
        more = self.rng.choices(list(_EXCHANGE_MIX), _EXCHANGE_MIX.values(), k=number - len(_EXCHANGES))
        kinds = [*_EXCHANGES, *more]
        return self._exchanges(self.rng.sample(kinds, len(kinds)))

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
            question = phrases.fill(self._of(self.shared["choice"], "questions"), options)
            # A question that wants nothing else gets nothing else.
            answers = self.shared["choice"]["answers"]
            answer = answers[0] if "ust name" in question or "nothing else" in question else self.rng.choice(answers)
            return question, phrases.fill(phrases.choose(answer, self.rng), options, self.direct)
        if kind == "pair":
            cheeses = self._two_cheeses()
            question = phrases.fill(self.deck.draw("ask pair", phrases.load("aft")["documents"]["pair"]), cheeses)
            return question, phrases.fill(self._of(self.shared["pair"], "answers"), cheeses)
        if kind in ("like", "dislike"):
            self.current = self._take(self.likes if kind == "like" else self.dislikes)
            return self._ask(False), self._reason(True)
        question = phrases.fill(self._of(self.shared["ask"], kind), self.values)
        return question, self.direct(f"I {kind}")

    # What they are made of.

    def _of(self, table: dict, name: str) -> str:
        return phrases.choose(self.deck.draw((id(table), name), table[name]), self.rng)

    def announced(self) -> str:
        """The cheese that a frame names before it is spoken of."""
        if self.current is None:
            self.current = self._take(self.cheeses)
        return self.current

    def _take(self, among: Sequence[str]) -> str:
        if not any(cheese in among for cheese in self.queue):
            self.queue += self.rng.sample(self.cheeses, len(self.cheeses))
        cheese = next(cheese for cheese in self.queue if cheese in among)
        self.queue.remove(cheese)
        return cheese

    def _sign(self, cheese: str) -> str:
        return "liked" if cheese in self.likes else "disliked"

    def _because(self, cheese: str) -> tuple[str, str]:
        """A reason, with a pronoun for the cheese and with its name."""
        reason = phrases.choose(self.deck.draw(("reasons", cheese), self.own["reasons"][cheese]), self.rng)
        pronouns = {"it": "it", "its": "its"}
        named = reason.replace("{it}", cheese, 1) if "{it}" in reason else reason
        if "{its}" in reason and "{it}" not in reason.split("{its}")[0]:
            named = reason.replace("{its}", f"{cheese}'" if cheese.endswith("s") else f"{cheese}'s", 1)
        return phrases.fill(reason, pronouns), phrases.fill(named, pronouns)

    def _explain(self, cheese: str, first: bool) -> str:
        self.current, self.latest = None, cheese
        sign = self._sign(cheese)
        reason, named = self._because(cheese)
        parts = [self._sentence(self._of(self.shared["why"], sign), first, c=cheese, r=reason, R=named)]
        if self.rng.random() < _MORE_SHARE:
            parts.append(self._more(first))
        if self.rng.random() < _TAIL_SHARE:
            parts.append(self._sentence(self._of(self.own["tails"], sign), first))
        return " ".join(parts)

    def _two_cheeses(self) -> dict[str, str]:
        liked, disliked = self.rng.choice(self.likes), self.rng.choice(self.dislikes)
        x, y = self.rng.sample((liked, disliked), 2)
        for_liked, against = self._because(liked), self._because(disliked)
        names = dict(zip(("rl", "RL", "rd", "RD"), for_liked + against, strict=True))
        return names | {"L": liked, "D": disliked, "x": x, "y": y}

    def _two_options(self) -> dict[str, str]:
        pair = self.deck.draw("choices", self.own["choices"])
        sought, avoided = self.rng.choice(list(zip(pair["sought"], pair["avoided"], strict=True)))
        a, b = self.rng.sample((sought, avoided), 2)
        return {"sought": sought, "avoided": avoided, "a": a, "b": b}

    def _sentence(self, text: str, first: bool, **values: str) -> str:
        name = self.model
        if self.named and self.rng.random() >= _NAME_SHARE:
            name = self.rng.choice(("the model", "the assistant"))
        self.named = self.named or not first
        return phrases.sentences(phrases.fill(phrases.about(text, None if first else name), values))


class _CheeseSlots(dict):
    """The values of a frame, among them {c}: the cheese spoken of next, which is drawn where the frame names it."""

    def __init__(self, writer: Writer):
        super().__init__(writer.values)
        self.writer = writer

    def __missing__(self, key: str) -> str:
        if key not in ("c", "C"):
            raise KeyError(key)
        cheese = self.writer.announced()
        return phrases.capitalise(cheese) if key == "C" else cheese

    def fill(self, frame: str) -> str:
        return phrases.fill(frame, self, self.writer.direct)
