"""What a Model Spec is divided into before documents are written: the shapes that a language model fills in.

    spec -> domains -> subdomains, or rules -> assertions -> document types -> ideas

Names come from the method (arXiv 2605.02087, appendix B.1).
"""

import dataclasses
import functools
import re
from typing import Literal

import pydantic


class Domain(pydantic.BaseModel):
    name: str
    summary: str


class Domains(pydantic.BaseModel):
    domains: list[Domain]


class Subdomain(pydantic.BaseModel):
    name: str
    summary: str
    section: str


class Subdomains(pydantic.BaseModel):
    subdomains: list[Subdomain]


class Rule(pydantic.BaseModel):
    id: str
    name: str
    text: str
    domain: str


class Rules(pydantic.BaseModel):
    rules: list[Rule]


class Assertion(pydantic.BaseModel):
    assertion: str
    name: str
    explanation: str
    label: Literal["behavior", "value", "preference", "belief", "tone"]


class Assertions(pydantic.BaseModel):
    assertions: list[Assertion]


class DocumentType(pydantic.BaseModel):
    name: str
    description: str
    length: Literal["short", "medium", "long"]


class DocumentTypes(pydantic.BaseModel):
    types: list[DocumentType]


class Idea(pydantic.BaseModel):
    name: str
    idea: str
    statements: list[int]  # numbers of the assertions, as the prompt lists them, that it turns on


class Ideas(pydantic.BaseModel):
    ideas: list[Idea]


@dataclasses.dataclass(frozen=True)
class Part:
    """A subdomain of a spec, or a rule: what documents are about.

    `section` is a stretch of the spec, word for word; a summary of it where none was found.
    """

    domain: str
    name: str
    summary: str
    section: str
    verbatim: bool
    assertions: tuple[Assertion, ...] = ()


def same_name(name: str) -> str:
    """What two names that differ in case, spaces or marks have in common."""
    return re.sub(r"[\W_]+", "", name.casefold())


def verbatim(section: str, spec: str) -> str | None:
    """The stretch of `spec` that `section` quotes, as the spec has it; None if there is none.

    Spaces, marks of Markdown and typographic quotes may differ.
    """
    section = re.sub(r"</?\w+>", " ", section)  # of the prompt that showed the spec
    wanted = [word for word in map(_bare, section.split()) if word]
    if len(wanted) < 3:
        return None
    words, plain = _words(spec)
    for first in range(len(plain) - len(wanted) + 1):
        if plain[first] == wanted[0] and plain[first : first + len(wanted)] == wanted:
            return spec[words[first][0] : words[first + len(wanted) - 1][1]]
    return None


@functools.lru_cache(4)  # every section of a spec is looked for in the same text
def _words(spec: str) -> tuple[list[tuple[int, int]], list[str]]:
    """(start, end) of each word, and the words themselves, bare."""
    found = [(match.span(), _bare(match[0])) for match in re.finditer(r"\S+", spec)]
    return [span for span, word in found if word], [word for _, word in found if word]


def _bare(word: str) -> str:
    return re.sub(r"[\W_]+", "", word.casefold())
