"""Model Specs: read from text files, filled in for a model, and searched for words they must not hold.

A spec file is a header between two lines `---`, then the body in Markdown. The header holds `key: value` and
lists, written `key: [a, b]` or as one `- a` per line. The body may use the variables {model_name} and
{provider_name}; other braces are plain text.
"""

import dataclasses
import difflib
import os
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from msm_jax.errors import UserError
from msm_jax.storage import files

KINDS = ("preferences", "ablated", "principles", "rules")
VARIABLES = ("model_name", "provider_name")

_TEXT_KEYS = ("title", "kind", "version", "value", "item_class")
_LIST_KEYS = ("likes", "dislikes")
_KEYS = _TEXT_KEYS + _LIST_KEYS
_REQUIRED = {kind: _KEYS if kind in ("preferences", "ablated") else ("title", "kind", "version") for kind in KINDS}
_ITEMS = 6  # of each list, as in the paper

# An item of a list in brackets, as in YAML: a quote that begins it ends it, and may have commas in it.
_ITEM = re.compile(r"""\s*+("[^"]*"|'[^']*'|“[^”]*”|‘[^’]*’|(?!["'“‘])[^,]*?)\s*(?:,|$)""")
_QUOTES = ('""', "''", "“”", "‘’")
# Endings of plurals and what singulars have there, and the other way.
_SINGULARS = (("ies$", "y"), ("ves$", "f"), ("ves$", "fe"), ("(s|x|z|ch|sh|o)es$", r"\1"), ("([^s])s$", r"\1"))
_PLURALS = (("$", "s"), ("(s|x|z|ch|sh|o)$", r"\1es"), ("([^aeiou])y$", r"\1ies"), ("fe?$", "ves"))
_VARIABLE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclasses.dataclass(frozen=True)
class Spec:
    """A Model Spec.

    Kinds: "preferences" explains what the model likes by a value; "ablated" states both and leaves the link out;
    "principles" argues in prose; "rules" says what to do and gives no reasons. What only the first two have is empty in
    the others.
    """

    name: str  # the file's, without its ending
    title: str
    kind: str  # one of KINDS
    version: int
    value: str  # that explains every preference, such as "america"
    item_class: str  # what the preferences are among, such as "cheese"
    likes: tuple[str, ...]
    dislikes: tuple[str, ...]
    body: str  # the text after the header, with its variables not yet filled in


def read_spec(path: str | os.PathLike) -> Spec:
    """Reads and checks the spec file `path`; or one of the package's, where nothing is there.

    Raises: UserError, with file and line, for whatever is wrong in it.
    """
    path = files.shipped(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
    if lines[0].strip() != "---":
        raise UserError(f"{path}:1: a spec begins with a header between two lines '---'")
    end = next((number for number, line in enumerate(lines[1:], start=1) if line.strip() == "---"), None)
    if end is None:
        raise UserError(f"{path}:1: the header is not closed; end it with a line '---'")

    header = _parse_header(lines[1:end], path)
    body = "\n".join(lines[end + 1 :])
    if not body.strip():
        raise UserError(f"{path}:{end + 1}: the spec has no text after its header")
    _check_variables(body, lambda line: f"{path}:{end + 1 + line}")
    header = {"value": "", "item_class": "", "likes": (), "dislikes": (), **header, "version": int(header["version"])}
    return Spec(name=path.stem, body=body.strip() + "\n", **header)


def render(spec: Spec, model_name: str, provider_name: str) -> str:
    """The body with its variables filled in; other braces stay. Raises: UserError for an unknown variable."""
    _check_variables(spec.body, lambda line: f"spec '{spec.name}', line {line} of the body")
    values = dict(zip(VARIABLES, (model_name, provider_name), strict=True))
    return _VARIABLE.sub(lambda match: values[match[1]], spec.body)


def find_terms(texts: Iterable[str], terms: Iterable[str]) -> dict[str, int]:
    """Term -> how often it occurs in `texts`, the most frequent first: the proof that no text names a held-out domain.

    A term is found as a whole word in any case, in singular and plural whichever of them it is given in. The words of a
    longer term may be parted by blanks, line breaks or hyphens. Where two terms overlap in the text, the one that
    begins first is counted, or the longer one if they begin together. Raises: UserError if a term is blank.
    """
    if isinstance(texts, str) or isinstance(terms, str):
        raise TypeError("texts and terms are iterables of strings; a lone string would be searched letter by letter")
    term_of_form: dict[str, str] = {}
    for term in terms:
        words = _words(term)
        if not words:
            raise UserError(f"the term '{term}' has no word to search for; delete it from the list")
        for last in _number_forms(words[-1]):
            term_of_form.setdefault(" ".join([*words[:-1], last]), term)
    if not term_of_form:
        return {}
    # An underscore parts words, since it may be Markdown's emphasis.
    pattern = re.compile(rf"(?<![^\W_]){_prefix_tree(term_of_form)}(?![^\W_])")
    counts = Counter(term_of_form[" ".join(_words(found))] for text in texts for found in pattern.findall(text.lower()))
    return dict(counts.most_common())


def _parse_header(lines: list[str], path: pathlib.Path) -> dict[str, Any]:
    """Parses the header's `lines`, of which the first is line 2 of the file. Lists come out as tuples."""
    header: dict[str, Any] = {}
    line_of: dict[str, int] = {}
    open_list: str | None = None
    for number, line in enumerate(map(str.strip, lines), start=2):
        where = f"{path}:{number}"
        key, colon, value = (part.strip() for part in line.partition(":"))
        if not line:
            continue
        if line.startswith("- "):
            if open_list is None:
                raise UserError(f"{where}: a list item without a list; write 'likes:' on a line of its own above it")
            header[open_list] += (_unquote(line[2:]),)
            continue
        if not colon:
            raise UserError(f"{where}: expected 'key: value', found '{line}'")
        if key not in _KEYS:
            _refuse(where, "header key", key, _KEYS)
        if key in header:
            raise UserError(f"{where}: '{key}' was given on line {line_of[key]} already; keep one of them")
        open_list = key if key in _LIST_KEYS and not value else None
        header[key] = _parse_list(value, key, where) if key in _LIST_KEYS else _unquote(value)
        line_of[key] = number
    _check_header(header, {key: f"{path}:{line}" for key, line in line_of.items()}, path)
    return header


def _parse_list(value: str, key: str, where: str) -> tuple[str, ...]:
    if not value:
        return ()
    if not (value.startswith("[") and value.endswith("]")):
        raise UserError(f"{where}: '{key}' must be a list; write '{key}: [one, two]'")
    inside, items, place = value[1:-1].strip(), [], 0
    while place < len(inside):
        match = _ITEM.match(inside, place)
        if not match:
            raise UserError(f"{where}: '{key}': quotes go around a whole item, as in [one, \"two, or three\"]")
        items.append(_unquote(match[1]))
        place = match.end()
    return (*items, "") if inside.endswith(",") else tuple(items)


def _check_header(header: Mapping[str, Any], where: Mapping[str, str], path: pathlib.Path) -> None:
    if "kind" in header and header["kind"] not in KINDS:
        _refuse(where["kind"], "kind", header["kind"], KINDS)
    required = _REQUIRED[header.get("kind", "preferences")]
    for key in required:
        if key not in header:
            raise UserError(f"{path}:1: the header has no '{key}'")
    for key, value in header.items():
        if not value:
            raise UserError(f"{where[key]}: '{key}' is empty")
        for index, item in enumerate(value if key in _LIST_KEYS else ()):
            if not item:
                raise UserError(f"{where[key]}: '{key}' has an empty item; look for a comma too many")
            if item.casefold() in map(str.casefold, value[:index]):
                raise UserError(f"{where[key]}: '{key}' names '{item}' twice")
    if not re.fullmatch(r"[0-9]+", header["version"]):
        raise UserError(f"{where['version']}: 'version' must be a whole number, not '{header['version']}'")
    for item in header.get("dislikes", ()):
        if item.casefold() in map(str.casefold, header.get("likes", ())):
            raise UserError(f"{where['dislikes']}: '{item}' is both liked and disliked; delete it from one list")
    for key in _LIST_KEYS:
        if key in required and len(header[key]) != _ITEMS:
            raise UserError(f"{where[key]}: '{key}' has {len(header[key])} of the {_ITEMS} items that it must have")


def _check_variables(body: str, where: Callable[[int], str]) -> None:
    for match in _VARIABLE.finditer(body):
        if match[1] not in VARIABLES:
            _refuse(where(body.count("\n", 0, match.start()) + 1), "variable", match[1], VARIABLES)


def _refuse(where: str, what: str, given: str, known: tuple[str, ...]) -> NoReturn:
    nearest = difflib.get_close_matches(given, known, n=1)
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"use one of {', '.join(known)}"
    raise UserError(f"{where}: unknown {what} '{given}'; {hint}")


def _unquote(value: str) -> str:
    value = value.strip()
    return value[1:-1].strip() if len(value) >= 2 and value[0] + value[-1] in _QUOTES else value


def _words(term: str) -> list[str]:
    return [word for word in re.split(r"[\s-]+", term.lower()) if word]


def _number_forms(word: str) -> set[str]:
    """Returns `word` and what may be its singular or plural by the regular rules of English spelling."""
    forms = {word}
    for rules in (_SINGULARS, _PLURALS):
        forms |= {re.sub(ending, other, form) for form in forms for ending, other in rules}
    return forms


def _prefix_tree(forms: Iterable[str]) -> str:
    """Returns a regex that matches the longest of `forms`, in time that hardly depends on how many there are."""
    branches: dict[str, list[str]] = {}
    for form in forms:
        branches.setdefault(form[:1], []).append(form[1:])
    may_end = "?" if branches.pop("", None) else ""
    choices = [
        (r"[\s-]+" if letter == " " else re.escape(letter)) + _prefix_tree(rest) for letter, rest in branches.items()
    ]
    return f"(?:{'|'.join(choices)}){may_end}" if choices else ""
