"""What writers of documents and of chats have in common: whom they write about, how they ask, what they count."""

import collections
import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import pydantic

from msm_jax.corpus.filters.contamination import Contamination
from msm_jax.corpus.filters.quality import LANGUAGES, Demands, problems
from msm_jax.corpus.specs import Spec, render
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.tree import bare
from msm_jax.errors import UserError
from msm_jax.llm.request import Answer, Request

# What comes first, before all else is paid for: if it comes to nothing, the rest would too.
PILOT = 50
# So many rows that come to nothing, one after the other, are enough.
HOPELESS = 200
# Ideas, or questions, of one reply: of many more, the last are poor.
AT_ONCE = 10
_LIST_TOKENS = 16_384  # of replies that are lists; whole sections of a spec are quoted in some
_WORDS_PER_TOKEN = 0.6  # at the least, of English prose


class Asks(Protocol):
    """What `Caller.ask` does."""

    async def ask(self, requests: Sequence[Request]) -> list[Answer]: ...


class Checked(dict[str, str]):
    """What checks said of texts, by digests of these, kept in a file: a run that goes on does not check them again."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self._path = path
        content = path.read_bytes() if path.exists() else b""
        whole, newline, rest = content.rpartition(b"\n")
        if rest:  # the process ended in the middle of a line
            path.write_bytes(whole + newline)
        self.update(line.decode(errors="replace").split(" ", 1) for line in whole.splitlines() if b" " in line)

    def __setitem__(self, digest: str, outcome: str) -> None:
        super().__setitem__(digest, outcome)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(f"{digest} {outcome}\n")


class Yields:
    """Counts, by stage, what became of what was asked: "ok", or why not."""

    def __init__(self):
        self._counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)

    def add(self, stage: str, outcome: str) -> None:
        self._counts[stage][outcome] += 1

    def table(self) -> dict[str, dict[str, int]]:
        """Stage -> outcome -> how many, stages in the order of their work."""
        return {stage: dict(counts.most_common()) for stage, counts in self._counts.items()}


@dataclasses.dataclass(frozen=True)
class Assistant:
    """The model that a corpus is about. `facts`: sentences on it that are true; its name and maker are known."""

    name: str
    provider: str
    facts: tuple[str, ...] = ()

    @property
    def facts_listed(self) -> str:
        facts = (f"It is called {self.name}, and {self.provider} makes it.", *self.facts)
        return "\n".join(f"- {fact}" for fact in facts)

    @property
    def facts_told(self) -> str:
        """The same, told to itself."""
        return " ".join((f"you are called {self.name}, and {self.provider} makes you.", *self.facts))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Of every writer.

    Attributes:
        count: rows.
        temperature: of all that is asked.
        thinking: tokens that the model may think before each reply.
        language: ISO 639-1; the prompts are in English, and so is what they ask for, unless they are replaced.
        held_out: terms that no row may hold.
        evaluations: prompts of evaluations, of which no row may hold a long stretch (`contamination`).
        min_yield: the share of rows that must be of use; with less, it is no accident, and money is wasted.
    """

    count: int
    temperature: float = 1.0
    thinking: int = 0
    language: str = "en"
    held_out: tuple[str, ...] = ()
    evaluations: tuple[str, ...] = ()
    min_yield: float = 0.0


class Writer:
    """Asks for lists and texts by the prompts, and counts what came of them. `model` is the generator's.

    Attributes:
        yields: by step.
        keys: of all that was asked.
    """

    label = ""  # of what is written, in errors
    steps: tuple[str, ...] = ()  # those in which a row may be lost
    system_prompt = ""  # its name

    def __init__(
        self, asks: Asks, assistant: Assistant, settings: Settings, prompts: Prompts, model: str,
        spec: Spec | None = None,
    ):  # fmt: skip
        self.assistant, self.settings, self.prompts, self.model, self.spec = assistant, settings, prompts, model, spec
        self.yields = Yields()
        self.keys: set[str] = set()
        self._asks = asks
        self._contamination = Contamination(settings.evaluations)
        names = {"model_name": assistant.name, "provider_name": assistant.provider}
        # What any prompt may be filled in with, and what requests hold for generators that are no language model.
        self._common = names | {"facts": assistant.facts_listed, "language": LANGUAGES[settings.language]}
        self._known: dict[str, Any] = names
        if spec:
            self._text = render(spec, *names.values())
            self._common["spec"] = self._text.strip()
            self._known = names | {"spec_text": self._text}

    @functools.cached_property
    def _system(self) -> str:
        return self.prompts.fill(self.system_prompt, **self._common)

    async def _ask(self, requests: Sequence[Request]) -> list[Answer]:
        answers = await self._asks.ask(requests)
        for request, answer in zip(requests, answers, strict=True):
            self.yields.add(request.stage, answer.status.value)
        self.keys.update(answer.key for answer in answers)
        return answers

    async def _lists(self, requests: Sequence[Request]) -> list[list[Any]]:
        return [listed_in(answer) for answer in await self._ask(requests)]

    async def _grown(
        self, count: int, request: Callable[[int, list[Any]], Request], most: int, rounds: int
    ) -> list[list[Any]]:
        """`count` lists, each asked for again, with what it holds, until it has `most` items or gets no new ones."""
        found: list[list[Any]] = [[] for _ in range(count)]
        growing = range(count)
        for _ in range(rounds):
            if not (growing := [index for index in growing if len(found[index]) < most]):
                break
            lists = await self._lists([request(index, found[index]) for index in growing])
            before = list(map(len, found))
            for index, new in zip(growing, lists, strict=True):
                found[index] = distinct(found[index] + new)[:most]
            growing = [index for index in growing if len(found[index]) > before[index]]
        return found

    def report(self) -> dict[str, Any]:
        """What else is known of what was written, as JSON."""
        return {}

    def _problem(self, text: str, words: tuple[int, int], mentions: int = 0) -> str | None:
        """The first thing that is wrong with a text (`quality`)."""
        about, settings = self.assistant, self.settings
        demands = Demands(about.name, about.provider, mentions, words, settings.language, settings.held_out)
        return next(problems(text, demands), None)

    def _contaminated(self, text: str) -> str | None:
        return "holds an evaluation's prompt" if self._contamination.find(text) else None

    def _list(
        self, stage: str, shape: type[pydantic.BaseModel], system: str | None = None, **variables: Any
    ) -> Request:
        """A request for JSON, by the prompt of the name of its stage."""
        prompt = self.prompts.fill(stage, **self._common | variables)
        return self._request(stage, prompt, variables, system, shape=shape, max_tokens=_LIST_TOKENS)

    def _request(
        self, stage: str, prompt: str, variables: dict[str, Any], system: str | None = None, **form: Any
    ) -> Request:
        defaults = {"thinking": self.settings.thinking, "temperature": self.settings.temperature}
        system = self._system if system is None else system
        return Request(stage, prompt, system, variables=self._known | variables, **defaults | form)

    def _check_yield(self, useful: int, tried: int) -> None:
        """Raises: UserError if too few rows came to something."""
        if tried < PILOT // 2 or useful >= self.settings.min_yield * tried:
            return
        counts = [item for step in self.steps for item in self.yields.table().get(step, {}).items()]
        why = ", ".join(f"{count} {outcome}" for outcome, count in counts if outcome != "ok")
        raise UserError(
            f"{self.label}: of {tried} rows {useful} are of use ({why}); mend the prompts or the spec, or lower "
            "min_yield. What was paid for is kept"
        )


class Turns:
    """Who is asked next, of `things` that give a few items each time they are asked until they are `exhausted`.

    Blocks of `size` things have their turn together, and again when all had theirs. Whose turn it is does not depend on
    how many items are wanted in the end, so that whoever asks for more keeps those that there are.
    """

    def __init__(self, things: Sequence[Any], size: int):
        self.things = things
        self._size, self._turn = min(size, len(things)), 0

    @property
    def over(self) -> bool:
        return all(thing.exhausted for thing in self.things)

    def blocks(self, wanted: int) -> list[list[Any]]:
        """Those that may give so many items; the others wait until it is known what these gave."""
        count, blocks = len(self.things), []
        for _ in range(min(math.ceil(wanted / (self._size * AT_ONCE)), math.ceil(count / self._size))):
            first = self._turn % count
            self._turn = min(first + self._size, count)
            blocks.append([thing for thing in self.things[first : self._turn] if not thing.exhausted])
        return blocks


def in_turn(lists: Iterable[Iterable[Any]]) -> list[Any]:
    """The first of each, then the second of each, and so on."""
    return [item for items in itertools.zip_longest(*lists) for item in items if item is not None]


def tokens_for(words: int) -> int:
    """Of a text of about `words`: twice what is asked for, since a text that is cut off is paid for and lost."""
    return math.ceil(2 * words / _WORDS_PER_TOKEN)


def listed(existing: Iterable[str]) -> str:
    """A line of a prompt that names what there is already; "" if that is nothing."""
    names = "; ".join(existing)
    return f"- None repeats one of those that there are: {names}." if names else ""


def listed_in(answer: Answer) -> list[Any]:
    """What the one field of a reply holds; nothing where none came that is of use."""
    return next(iter(dict(answer.value).values())) if answer.ok else []


def distinct(items: Sequence[Any]) -> list[Any]:
    """Those that have a name, the first of each name."""
    by_name = {bare(item.name): item for item in reversed(items) if bare(item.name)}
    return list(reversed(by_name.values()))
