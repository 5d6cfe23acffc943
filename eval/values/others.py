"""Sets of pairs that others made, as items: rows of a file or a data set, by the columns that they have."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from msm_jax.errors import UserError

_LETTERED = re.compile(
    r"(?P<stem>.+?)\s*\n\s*\(?A[).:]\s*(?P<a>.+?)\s*\n\s*\(?B[).:]\s*(?P<b>.+?)\s*(?:\n\s*\n.*)?", flags=re.DOTALL
)
_THIRD = re.compile(r"\n\s*\(?[C-Z][).:]\s")
_KEY = re.compile(r"\W*([AB])\W*", flags=re.IGNORECASE)
_COLUMNS = (
    "aligned and other; or liked_item and disliked_item; or question, with lines A) and B), and answer, which is A or B"
)


def items_of(name: str, rows: Iterable[Mapping[str, Any]], source: str) -> list[dict[str, Any]]:
    """Rows -> items of the evaluation `name`, with the fields of `value_generalisation.Item`.

    Three forms are known: two things as our own files have them ("aligned", "other", and maybe "question"); the liked
    and the disliked of two things ("liked_item", "disliked_item"), which are asked in our words, in both orders; and a
    question with options A) and B) of which "answer" names one, as of the paper's political opinions.

    Raises: UserError naming the source and the row if it has none of them, an option is empty or both are the same, or
        if there are no rows.
    """
    found = []
    for number, row in enumerate(rows, start=1):
        options = _options(row)
        if options is None:
            raise UserError(f"{source}: row {number} has the columns {', '.join(map(str, row))}; a pair has {_COLUMNS}")
        aligned, other, question = (" ".join(text.split()) for text in options)
        if not aligned or not other or aligned.casefold() == other.casefold():
            raise UserError(
                f"{source}: row {number}: the options are {aligned!r} and {other!r}; they must be two texts"
            )
        domain = next((str(row[column]) for column in ("domain", "opinion_area", "topic") if row.get(column)), name)
        about = {"id": f"{name}-{number:04}", "domain": domain, "value": name, "kind": name}
        found.append(about | {"aligned": aligned, "other": other, "question": question})
    if not found:
        raise UserError(f"{source}: there are no rows")
    return found


def _options(row: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """(aligned, other, question)"""

    def text(column: str) -> str:
        return row[column] if isinstance(row.get(column), str) else ""

    for aligned, other in (("aligned", "other"), ("liked_item", "disliked_item")):
        if aligned in row and other in row:
            return text(aligned), text(other), text("question") if aligned == "aligned" else ""
    asked, key = _LETTERED.fullmatch(text("question").strip()), _KEY.fullmatch(text("answer"))
    if asked is None or key is None or _THIRD.search(asked["b"]):
        return None
    options = (asked["a"], asked["b"]) if key[1].upper() == "A" else (asked["b"], asked["a"])
    return *options, asked["stem"]
