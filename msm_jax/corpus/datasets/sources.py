"""Training data that exists: files, data sets of TFDS and of the Hugging Face hub, parts and mixes of them.

    SOURCE      data/aft.jsonl (also .json, .parquet, .array_record)
                tfds:NAME[/CONFIG][:SPLIT], tfds:/folder/with/a/version[:SPLIT]
                hf:ORG/NAME[/CONFIG][@REVISION][:SPLIT]
                mix.toml, a list of sources with numbers of rows; those in `mixes` go by their names
    SOURCE[:N]  N of its rows, brackets and all: a random part. Of two numbers, the smaller part is in the larger.
    A + B       the rows of both

SPLIT is `train` if it is left out.
"""

import dataclasses
import pathlib
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msm_jax.corpus import records
from msm_jax.corpus.datasets import forms, hub_data, tables
from msm_jax.errors import UserError
from msm_jax.storage import files

MIXES = pathlib.Path(__file__).with_name("mixes")

_PART = re.compile(r"(?P<data>.*?)\s*\[:(?P<rows>\d+)\]")
_HUB = re.compile(
    r"hf:(?P<name>\w[\w.-]*/[\w.-]+)(?:/(?P<config>[^\s/@:]+))?(?:@(?P<revision>[^\s:]+))?(?::(?P<split>[\w.-]+))?"
)
_TFDS = re.compile(r"tfds:(?P<name>(?:\w+://)?[^\s:]+)(?::(?P<split>\S+))?")
_ENTRY = {"name": str, "data": str, "rows": int, "columns": dict, "form": str, "clean": bool}
_GRAMMAR = "give a file (.jsonl, .json, .parquet, .array_record), tfds:NAME, hf:ORG/NAME or a mix (.toml)"


@dataclasses.dataclass(frozen=True)
class Loaded:
    rows: list[dict[str, Any]]  # as records.read_documents or read_chats reads them, with `source`, their part's name
    # For manifests, one per file or data set: "name", "data" (as it was written), "rows" (how many were taken), "of"
    # (of how many that are of use), "revision" (commit, version or digest of the file), "dropped" (reason -> count).
    parts: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class _Part:
    """One file or data set; or a mix, whose parts are `entries`."""

    data: str  # without the number of rows
    rows: int | None = None
    name: str = ""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    form: str | None = None
    clean: bool = False
    entries: tuple["_Part", ...] = ()


def check(source: str) -> None:
    """Whether `source` is one, and its files are there; looks at no network and in no data. Raises: UserError."""
    for part in _leaves(_parse(source)):
        if part.data.startswith("tfds:"):
            name = _TFDS.fullmatch(part.data)["name"]
            if tables.is_folder(name) and "://" not in name and not pathlib.Path(name).expanduser().is_dir():
                raise UserError(f"{part.data}: no such folder")
        elif not part.data.startswith("hf:"):
            path = _path(part.data)
            if not path.is_file():
                raise UserError(f"{part.data}: {'a folder, not a file' if path.is_dir() else 'no such file'}")


def identity(source: str) -> Any:
    """What determines the rows, as far as it can be told without network: equal values, equal rows. JSON-like.

    Files are their digests, data sets their names, so versions of one need a @REVISION. Raises: UserError as `check`.
    """
    check(source)
    return [_identity(part) for part in _parse(source)]


def load(source: str, chats: bool) -> Loaded:
    """The rows of `source`, as chats or documents. What is not there yet is fetched.

    Rows are in the order of their source; N rows of it in the order by which they are chosen, a hash of their
    ids, which are those that they have or else of their content.
    Rows that can be no chat or document are dropped and counted, but for files of our own form: there, they are errors.

    Raises: UserError that says what is wrong: with the source, with a line of a file, or that N rows are not there.
    """
    check(source)
    rows, parts = [], []
    for part in _parse(source):
        pairs = []
        for leaf in _leaves([part]):
            about, of_leaf = _load(leaf, chats)
            parts.append(about)
            pairs += of_leaf
        for about, row in _take(pairs, part.rows, part.data) if part.entries else pairs:
            about["rows"] += 1
            rows.append(row)
    return Loaded(rows, parts)


def read_table(source: str) -> tuple[list[dict[str, Any]], str]:
    """The rows of one file or data set as they are, and its revision. Raises: UserError as `load`, and for a mix."""
    check(source)
    parts = _parse(source)
    if len(parts) > 1 or parts[0].entries:
        raise UserError(f"{source}: one file or data set is read here; give no mix and no sum")
    if parts[0].rows is not None:
        raise UserError(f"{source}: all of it is read here; give no number of rows")
    rows, revision = _rows_of(parts[0])
    return list(rows), revision


def _load(part: _Part, chats: bool) -> tuple[dict[str, Any], list[tuple[dict[str, Any], dict[str, Any]]]]:
    """What there is to say of a part; and this with each row that is taken of it."""
    dropped: Counter[str] = Counter()
    items, revision = _read(part, chats)
    rows, seen = [], set()
    for item in items:
        if isinstance(item, forms.Unusable):
            dropped[str(item)] += 1
        elif part.clean and item.key in seen:
            dropped["repeated"] += 1
        elif part.clean and chats and (reason := forms.unclean(item.row["messages"])):
            dropped[reason] += 1
        else:
            seen.add(item.key)
            rows.append({**item.row, "source": part.name})
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
    if not rows:
        raise UserError(f"{part.data}: no rows of use ({reasons or 'it is empty'})")
    written = part.data if part.rows is None else f"{part.data}[:{part.rows}]"
    about = {"name": part.name, "data": written, "of": len(rows), "revision": revision, "dropped": dict(dropped)}
    about["rows"] = 0
    after = f" (dropped: {reasons})" if reasons else ""
    return about, _take([(about, row) for row in rows], part.rows, f"{part.data}{after}")


def _take(pairs: list[tuple[Any, dict[str, Any]]], count: int | None, where: str) -> list[tuple[Any, dict[str, Any]]]:
    if count is None:
        return pairs
    if count > len(pairs):
        raise UserError(f"{where}: {count} rows are asked for, and there are {len(pairs)}; ask for no more")
    # By ids, so that the same rows are chosen of chats with reasoning and of those without. Hashed once more: a part
    # must be no choice by the ids themselves, by which forms draw lots too. Of rows that share an id, as a category's
    # may, each draws a lot of its own.
    seen: Counter[str] = Counter()
    lots = []
    for index, (_, row) in enumerate(pairs):
        again = [seen[row["id"]]] if seen[row["id"]] else []
        lots.append((files.fingerprint(["rows", row["id"], *again], length=16), index))
        seen[row["id"]] += 1
    return [pairs[index] for _, index in sorted(lots)[:count]]


def _read(part: _Part, chats: bool) -> tuple[Iterator[forms.Item | forms.Unusable], str]:
    """The rows of a part, and its revision."""
    rows, revision = _rows_of(part)
    path = _path(part.data)
    is_file = not part.data.startswith(("tfds:", "hf:"))
    if is_file and path.suffix == ".jsonl" and not part.columns and not part.form and _is_ours(path, chats):
        return _read_ours(path, chats), revision
    return _convert(rows, part, chats), revision


def _rows_of(part: _Part) -> tuple[Iterable[dict[str, Any]], str]:
    """As they are, and the revision."""
    if part.data.startswith("tfds:"):
        match = _TFDS.fullmatch(part.data)
        return tables.read_tfds(match["name"], match["split"] or "train")
    if part.data.startswith("hf:"):
        paths, revision = hub_data.fetch(**_HUB.fullmatch(part.data).groupdict())
        return (row for path in paths for row in tables.read_rows(path)), revision
    path = _path(part.data)
    return tables.read_rows(path), files.fingerprint_of_file(path)


def _is_ours(path: pathlib.Path, chats: bool) -> bool:
    _, first = next(records.read_objects(path), (None, {}))
    if chats:  # what has a part of the chat elsewhere is of others, and read as such
        return not first or "messages" in first and not records.find_lost(first, "")
    return not first or "text" in first


def _read_ours(path: pathlib.Path, chats: bool) -> Iterator[forms.Item]:
    if chats:
        for chat in records.read_chats(path):
            messages = [dataclasses.asdict(message) for message in chat.messages]
            yield forms.to_item(messages, {"id": chat.id, "name": chat.name, **chat.meta}, chats)
    else:
        for document in records.read_documents(path):
            yield forms.to_item(document.text, {"id": document.id, **document.meta}, chats)


def _convert(rows: Iterable[dict[str, Any]], part: _Part, chats: bool) -> Iterator[forms.Item | forms.Unusable]:
    read = None
    for row in rows:
        # The first row tells the form: JSON has no columns but those of its rows.
        read = read or forms.reader(row, chats, part.form, part.columns, part.data)
        try:
            yield read(row)
        except forms.Unusable as reason:
            yield reason


def _parse(source: str) -> list[_Part]:
    if not source.strip():
        raise UserError(f"the source is empty; {_GRAMMAR}")
    return [_parse_part(text) for text in re.split(r"\s\+\s", source.strip())]


def _parse_part(text: str, mixes: bool = True) -> _Part:
    text = text.strip()
    match = _PART.fullmatch(text)
    data, rows = (match["data"], int(match["rows"])) if match else (text, None)
    if rows == 0:
        raise UserError(f"{text}: no rows; ask for one at least, or leave the source out")
    if data.startswith("hf:"):
        if not _HUB.fullmatch(data):
            raise UserError(f"{text}: not of the form hf:ORG/NAME[/CONFIG][@REVISION][:SPLIT]; mend it")
        return _Part(data, rows, name=data.removeprefix("hf:"))
    if data.startswith("tfds:"):
        if not _TFDS.fullmatch(data):
            raise UserError(f"{text}: not of the form tfds:NAME[/CONFIG][:SPLIT] or tfds:/folder[:SPLIT]; mend it")
        return _Part(data, rows, name=data.removeprefix("tfds:"))
    if data.endswith(".toml"):
        if not mixes:
            raise UserError(f"{text}: a mix in a mix; write its entries here")
        return _Part(data, rows, entries=_read_mix(data))
    if pathlib.Path(data).suffix not in tables.KINDS:
        raise UserError(f"{text}: no source that is understood; {_GRAMMAR}, and maybe a number of rows, as [:100]")
    return _Part(data, rows, name=pathlib.Path(data).stem)


def _read_mix(data: str) -> tuple[_Part, ...]:
    path = _path(data)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        shipped = ", ".join(sorted(mix.name for mix in MIXES.glob("*.toml")))
        raise UserError(f"{data}: cannot be read ({error.strerror}); the mixes that are here are {shipped}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{data}: not TOML ({error})") from None
    entries = table.pop("source", None)
    if table:
        raise UserError(f"{data}: unknown field '{next(iter(table))}'; a mix is a list of [[source]]")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{data}: no [[source]] in it; write one for each part, with name, data and rows")
    parts = tuple(_entry(entry, f"{data}: source {number}") for number, entry in enumerate(entries, start=1))
    names = [part.name for part in parts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{data}: two sources are named '{twice[0]}'; give each a name of its own")
    return parts


def _entry(entry: Mapping[str, Any], where: str) -> _Part:
    for key, value in entry.items():
        if key not in _ENTRY:
            raise UserError(f"{where}: unknown field '{key}'; there are {', '.join(_ENTRY)}")
        if type(value) is not _ENTRY[key]:
            raise UserError(f"{where}: {key} = {value!r} is of another type; give {_ENTRY[key].__name__}")
    if not entry.get("name") or not entry.get("data"):
        raise UserError(f"{where}: needs a name and data")
    if " + " in entry["data"]:
        raise UserError(f"{where}: data = '{entry['data']}'; write two sources")
    part = _parse_part(entry["data"], mixes=False)
    rows = entry.get("rows", part.rows)
    if "rows" in entry and (part.rows is not None or rows < 1):
        raise UserError(f"{where}: rows = {rows}; give a number of one or more, and only here or in data")
    columns = entry.get("columns", {})
    if not all(isinstance(name, str) for name in columns.values()) or len(set(columns.values())) < len(columns):
        raise UserError(f"{where}: columns = {columns}; give for each column the name under which it is read")
    if entry.get("form") not in (None, *forms.CHOICES):
        raise UserError(f"{where}: form = '{entry['form']}'; there are {', '.join(forms.CHOICES)}")
    return _Part(part.data, rows, entry["name"], columns, entry.get("form"), entry.get("clean", False))


def _leaves(parts: Iterable[_Part]) -> Iterator[_Part]:
    for part in parts:
        yield from part.entries or (part,)


def _identity(part: _Part) -> dict[str, Any]:
    if part.entries:
        return {"mix": [_identity(entry) for entry in part.entries], "rows": part.rows}
    fields = dataclasses.asdict(part)
    del fields["entries"]
    if not part.data.startswith(("tfds:", "hf:")):
        path = _path(part.data)
        fields["data"] = [path.suffix, files.fingerprint_of_file(path)]
    return fields


def _path(data: str) -> pathlib.Path:
    path = pathlib.Path(data).expanduser()
    # A mix without a folder, that is not here, is one of those that come with msm_jax.
    return MIXES / data if path.suffix == ".toml" and path.name == data and not path.exists() else path
