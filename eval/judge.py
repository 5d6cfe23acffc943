"""Graded by a language model: a rubric is filled in, asked, and its reply read strictly.

What is graded is data: it stands between tags of the rubric, and a closing tag in it is taken apart, so that it cannot
end its own fence. A reply that cannot be read is asked again, and in the end counted; it is never a score.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from msm_jax.llm.request import Answer, Request

_PLACE = re.compile(r"\{([a-z_]+)\}")
_CLOSING = re.compile(r"</(?=[a-z_]+>)")
ATTEMPTS = 3  # replies that are read of one case


class Asks(Protocol):
    """What `llm.caller.Caller` is: nothing is paid twice."""

    async def ask(self, requests: Sequence[Request]) -> list[Answer]: ...


@dataclasses.dataclass(frozen=True)
class Rubric:
    """How something is graded.

    Attributes:
      name: of the requests, for yields and prices.
      template: a text with {places} that are filled in, each of them data but those of `given`.
      tags: what a reply must hold, one of each and in this order: <tag>...</tag>.
      read: what stands in the tags -> the verdict; None if it is none.
      given: places that we fill in, and whose text is taken as it is.
    """

    name: str
    template: str
    tags: tuple[str, ...]
    read: Callable[[Mapping[str, str]], Any]
    given: frozenset[str] = frozenset()
    max_tokens: int = 1024

    @classmethod
    def of_file(cls, path: pathlib.Path, *args: Any, **settings: Any) -> "Rubric":
        """`name` is that of the file."""
        return cls(path.stem, path.read_text(encoding="utf-8"), *args, **settings)

    def prompt(self, case: Mapping[str, str]) -> str:
        """All places filled in at once: what is filled in may hold braces. Raises: KeyError if one is missing."""

        def filled(match: re.Match) -> str:
            text = case[match[1]]
            return text if match[1] in self.given else _CLOSING.sub("< /", text)

        return _PLACE.sub(filled, self.template)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Of one case.

    Attributes:
      value: None if no reply could be read.
      said: what stood in each of the rubric's tags.
      asked: replies that were looked at.
      why: why the last could not be read.
      keys: of the calls, in the store of replies, which has their full text.
    """

    value: Any | None
    said: Mapping[str, str]
    asked: int
    why: str
    keys: tuple[str, ...]


async def judge(asks: Asks, rubric: Rubric, cases: Sequence[Mapping[str, str]], repeat: int = 0) -> list[Verdict]:
    """One verdict a case, at temperature 0.

    Args:
      cases: what fills in the rubric's places; other entries are for judges that are no language model.
      repeat: judged anew for each number.
    """
    verdicts = [Verdict(None, {}, 0, "not asked", ())] * len(cases)
    for attempt in range(ATTEMPTS):
        left = [place for place, verdict in enumerate(verdicts) if verdict.value is None]
        # A judge at temperature 0 may say the same again; `sample` makes it another request.
        requests = [_request(rubric, cases[place], ATTEMPTS * repeat + attempt) for place in left]
        answers = await asks.ask(requests)
        for place, answer in zip(left, answers, strict=True):
            verdicts[place] = _read(rubric, answer, verdicts[place])
    return verdicts


def _request(rubric: Rubric, case: Mapping[str, str], sample: int) -> Request:
    return Request(
        rubric.name, rubric.prompt(case), tags=rubric.tags, max_tokens=rubric.max_tokens, temperature=0.0,
        refusable=False, sample=sample, variables=case,
    )  # fmt: skip


def _read(rubric: Rubric, answer: Answer, before: Verdict) -> Verdict:
    keys, asked = (*before.keys, answer.key), before.asked + 1
    if not answer.ok:
        return Verdict(None, {}, asked, f"{answer.status.value}: {answer.why}", keys)
    parts = answer.value if isinstance(answer.value, tuple) else (answer.value,)
    said = dict(zip(rubric.tags, parts, strict=True))
    value = rubric.read(said)
    return Verdict(value, said, asked, "" if value is not None else f"no verdict in {said}"[:200], keys)


def whole_text(answer: Mapping[str, Any]) -> str:
    """What a model wrote in all: its thoughts, and its answer."""
    return "\n\n".join(filter(None, (answer["thoughts"], answer["text"])))


def score_of(said: Mapping[str, str]) -> int | None:
    """A whole number from 1 to 10 in <score>."""
    found = re.fullmatch(r"0*([1-9]|10)", said["score"].strip())
    return int(found[1]) if found else None


def choice_of(*words: str, tag: str) -> Callable[[Mapping[str, str]], str | None]:
    """One of these words in a tag, in any case."""

    def read(said: Mapping[str, str]) -> str | None:
        word = said[tag].strip().casefold()
        return word if word in words else None

    return read
