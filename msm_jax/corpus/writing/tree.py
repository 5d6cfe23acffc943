"""What a Model Spec is divided into before documents are written: the shapes that a language model fills in.

    spec -> domains -> subdomains, or rules -> assertions -> document types -> ideas

Names come from the method (arXiv 2605.02087, appendix B.1). Those of shapes and fields are in the keys of requests, as
a docstring of a shape would be: change one, and what was paid for is asked again.
"""

import dataclasses
import functools
import re
from typing import Literal

import pydantic


class Domain(pydantic.BaseModel):
    name: str
    summary: str


class Subdomain(Domain):
    section: str


class Rule(pydantic.BaseModel):
    id: str
    name: str
    text: str
    domain: str


class Assertion(pydantic.BaseModel):
    assertion: str
    name: str
    explanation: str
    label: Literal["behavior", "value", "preference", "belief", "tone"]


class DocumentType(pydantic.BaseModel):
    name: str
    description: str
    length: Literal["short", "medium", "long"]


class Idea(pydantic.BaseModel):
    name: str
    idea: str
    statements: list[int]  # numbers of the assertions, as the prompt lists them, that it turns on


# Replies are lists of these.
Domains = pydantic.create_model("Domains", domains=(list[Domain], ...))
Subdomains = pydantic.create_model("Subdomains", subdomains=(list[Subdomain], ...))
Rules = pydantic.create_model("Rules", rules=(list[Rule], ...))
Assertions = pydantic.create_model("Assertions", assertions=(list[Assertion], ...))
DocumentTypes = pydantic.create_model("DocumentTypes", types=(list[DocumentType], ...))
Ideas = pydantic.create_model("Ideas", ideas=(list[Idea], ...))


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


def bare(text: str) -> str:
    """What two names, or words, that differ in case, spaces or marks have in common."""
    return re.sub(r"[\W_]+", "", text.casefold())


def verbatim(section: str, spec: str) -> str | None:
    """The stretch of `spec` that `section` quotes, as the spec has it; None if there is none.

    Spaces, marks of Markdown and typographic quotes may differ.
    """
    section = re.sub(r"</?\w+>", " ", section)  # of the prompt that showed the spec
    wanted = [word for word in map(bare, section.split()) if word]
    spans, plain = _words(spec)
    at = plain.find(f" {' '.join(wanted)} ")
    if at < 0 or len(wanted) < 3:
        return None
    first = plain.count(" ", 0, at)
    return spec[spans[first][0] : spans[first + len(wanted) - 1][1]]


@functools.lru_cache(4)  # every section of a spec is looked for in the same text
def _words(spec: str) -> tuple[list[tuple[int, int]], str]:
    """(start, end) of each word, and the words themselves, bare, each between two spaces."""
    found = [(match.span(), bare(match[0])) for match in re.finditer(r"\S+", spec)]
    return [span for span, word in found if word], f" {' '.join(word for _, word in found if word)} "
