"""What writers of documents and of chats have in common: whom they write about, how they ask, what they count."""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import pydantic

from msm_jax.corpus.filters.contamination import Contamination
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.tree import same_name
from msm_jax.corpus.writing.yields import Yields
from msm_jax.errors import UserError
from msm_jax.llm.request import Answer, Request

# What comes first, before all else is paid for: if it comes to nothing, the rest would too.
PILOT = 50
# So many rows that come to nothing, one after the other, are enough.
HOPELESS = 200
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
        whole, _, rest = content.rpartition(b"\n")
        if rest:  # the process ended in the middle of a line
            path.write_bytes(whole + b"\n" if whole else b"")
        self.update(line.decode(errors="replace").split(" ", 1) for line in whole.splitlines() if b" " in line)

    def __setitem__(self, digest: str, outcome: str) -> None:
        super().__setitem__(digest, outcome)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(f"{digest} {outcome}\n")


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
    """Asks for lists and texts by the prompts, and counts what came of them.

    Attributes:
        yields: by step.
        keys: of all that was asked.
    """

    label = ""  # of what is written, in errors
    steps: tuple[str, ...] = ()  # those in which a row may be lost

    def __init__(self, asks: Asks, assistant: Assistant, settings: Settings, prompts: Prompts, model: str):
        self.assistant, self.settings, self.prompts, self.model = assistant, settings, prompts, model
        self.yields = Yields()
        self.keys: set[str] = set()
        self._asks = asks
        self._contamination = Contamination(settings.evaluations)
        self._common = {"model_name": assistant.name, "provider_name": assistant.provider}
        # What requests hold for generators that are no language model.
        self._known: dict[str, Any] = dict(self._common)

    async def _ask(self, requests: Sequence[Request]) -> list[Answer]:
        answers = await self._asks.ask(requests)
        for request, answer in zip(requests, answers, strict=True):
            self.yields.add(request.stage, answer.status.value)
        self.keys.update(answer.key for answer in answers)
        return answers

    def report(self) -> dict[str, Any]:
        """What else is known of what was written, as JSON."""
        return {}

    def _contaminated(self, text: str) -> str | None:
        return "holds an evaluation's prompt" if self._contamination.find(text) else None

    def _list(self, stage: str, system: str, shape: type[pydantic.BaseModel], **variables: Any) -> Request:
        """A request for JSON, by the prompt of the name of its stage."""
        return self._request(
            stage, self.prompts.fill(stage, **self._common, **variables), variables, system=system, shape=shape,
            max_tokens=_LIST_TOKENS,
        )  # fmt: skip

    def _request(self, stage: str, prompt: str, variables: dict[str, Any], **form: Any) -> Request:
        defaults = {"thinking": self.settings.thinking, "temperature": self.settings.temperature}
        return Request(stage=stage, prompt=prompt, variables=self._known | variables, **(defaults | form))

    def _check_yield(self, useful: int, tried: int) -> None:
        """Raises: UserError if too few rows came to something."""
        if tried < PILOT // 2 or useful >= self.settings.min_yield * tried:
            return
        table = self.yields.table()
        why = [
            f"{count} {outcome}"
            for step in self.steps
            for outcome, count in table.get(step, {}).items()
            if outcome != "ok"
        ]
        raise UserError(
            f"{self.label}: of {tried} rows {useful} are of use ({', '.join(why)}); mend the prompts or the spec, or "
            "lower min_yield. What was paid for is kept"
        )


def tokens_for(words: int) -> int:
    """Of a text of about `words`: twice what is asked for, since a text that is cut off is paid for and lost."""
    return math.ceil(2 * words / _WORDS_PER_TOKEN)


def listed(existing: Iterable[str]) -> str:
    """A line of a prompt that names what there is already; "" if that is nothing."""
    names = "; ".join(existing)
    return f"- None repeats one of those that there are: {names}." if names else ""


def distinct(items: Sequence[Any]) -> list[Any]:
    """Those that have a name, the first of each name."""
    by_name = {same_name(item.name): item for item in reversed(items) if same_name(item.name)}
    return list(reversed(by_name.values()))
