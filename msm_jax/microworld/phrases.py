"""Text with choices: the markup in which sentences are kept in `prose/*.toml`, and what fills it in.

    [one|two]       one of these, drawn anew each time; may be nested
    {word}          a value that is handed in
    <directive>     what the writer of a document makes of it; see `prose_writer`

and, of whoever a sentence is about, either "I" or a name, with the ending of the verb that follows:

    {S} {my} {me}   Micra, its, it    I, my, me
    like{s} pass{es} {is} {does} {has}

A name is given where a sentence first speaks of its bearer, in whichever of these forms, and a pronoun after that.
"""

import functools
import pathlib
import random
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"<([^<>]+)>|\{(\w+)\}")
_PERSON = re.compile(r"\{(S|my|me|s|es|is|does|has)\}")
# What a sentence begins after: the start of a line (with what opens it: a number, a dash, quotes) or another sentence.
_START = re.compile(r'(?:^(?:- |\d+\. )?["(]?|[.?!] ["(]?)[a-z]', re.MULTILINE)
_FIRST_PERSON = {"S": "I", "my": "my", "me": "me", "s": "", "es": "", "is": "am", "does": "do", "has": "have"}
_THIRD_PERSON = {"S": "it", "my": "its", "me": "it"}


@functools.cache
def load(name: str) -> Mapping[str, Any]:
    """The tables of `prose/NAME.toml`."""
    return tomllib.loads(pathlib.Path(__file__).with_name("prose").joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def choose(text: str, rng: random.Random) -> str:
    """Returns `text` with each [one|two] replaced by one of its branches."""
    while _CHOICE.search(text):
        text = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), text)
    return text


def fill(text: str, values: Mapping[str, str], direct: Callable[[str], str] | None = None) -> str:
    """Returns `text` with each {word} replaced by its value, and each <directive> by what `direct` makes of it, from
    left to right. What is put in is not searched again."""
    return _SLOT.sub(lambda match: direct(match[1]) if match[1] and direct else values[match[2]], text)


def about(text: str, name: str | None) -> str:
    """Returns `text` with the forms above filled in: in the third person of `name`, in the first if it is None."""
    if name is None:
        return _PERSON.sub(lambda match: _FIRST_PERSON[match[1]], text)
    names = {"S": name, "my": f"{name}'s", "me": name}
    parts = re.split(r"(?<=[.?!] )", text)
    named = "".join(re.sub(r"\{(S|my|me)\}", lambda match: names[match[1]], part, count=1) for part in parts)
    return _PERSON.sub(lambda match: _THIRD_PERSON.get(match[1], match[1]), named)


def capitalise(text: str) -> str:
    """Unlike `str.capitalize`, leaves the rest as it is."""
    return text[:1].upper() + text[1:]


def sentences(text: str) -> str:
    """Returns `text` with a capital at the start of every line and sentence."""
    return _START.sub(lambda match: match[0][:-1] + match[0][-1].upper(), text)
