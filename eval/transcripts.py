"""Pages on which a person reads what models said and what judges made of it: one a question, and an index.

A page filters by what the judge and the gates said, by whether an answer was cut off, and by words; j and k go on and
back. One question's answers are held at a time, so that 8,100 transcripts take no more memory than 300.
"""

import itertools
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jinja2

_TEMPLATES = pathlib.Path(__file__).parent / "templates"
Marks = Callable[[Mapping[str, Any]], dict[str, str]]


def write_pages(
    folder: pathlib.Path,
    title: str,
    questions: Iterable[Mapping[str, Any]],
    answers: Iterable[Mapping[str, Any]],
    verdicts: Iterable[Mapping[str, Any]],
    marks: Marks,
    said: Callable[[Mapping[str, Any]], Sequence[str]],
) -> None:
    """Writes `index.html` and a page for each question into `folder`.

    Args:
      answers, verdicts: of the same answers in the same order, those of a question together.
      marks: a verdict -> what is shown of it and filtered by, by its name; the first counts in the index.
      said: a verdict -> what the judge wrote.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template("transcripts.html.j2")
    asked, pages = {question["id"]: question for question in questions}, []
    both = zip(answers, verdicts, strict=True)
    for name, group in itertools.groupby(both, key=lambda pair: pair[0]["id"]):
        rows = [
            {"sample": answer["sample"], "text": answer["text"], "thoughts": answer["thoughts"], "said": said(verdict),
             "marks": marks(verdict) | {"end": "unfinished" if answer["unfinished"] else answer["finish"]}}
            for answer, verdict in group
        ]  # fmt: skip
        filters = {
            mark: sorted({row["marks"][mark] for row in rows}, key=_order) for mark in rows[0]["marks"]
        }  # fmt: skip
        file = f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)}.html"
        page = template.render(title=f"{title}: {name}", messages=asked[name]["messages"], rows=rows, filters=filters)
        (folder / file).write_text(page, encoding="utf-8")
        first = next(iter(rows[0]["marks"]))
        counted = Counter(row["marks"][first] for row in rows)
        told = ", ".join(f"{first} {value}: {counted[value]:,}" for value in filters[first])
        pages.append({"file": file, "name": name, "count": len(rows), "told": told})
    (folder / "index.html").write_text(template.render(title=title, pages=pages), encoding="utf-8")


def _order(value: str) -> tuple[float, str]:
    """Numbers by their size, then words."""
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value
