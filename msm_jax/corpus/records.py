"""Documents and chats as JSONL: the form in which a corpus is written, read and handed on.

One JSON object per line, UTF-8. A document is `{"id", "text", ...}`; a chat is `{"id", "messages":
[{"role", "content"}, ...], "name"?: speaker of the assistant turns, ...}`. `id` may be absent in a file
that a user made: it is then derived from the content. All other fields are kept, as `meta`.
"""

import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msm_jax import files
from msm_jax.errors import UserError

ROLES = ("system", "user", "assistant")

# Two million tokens. A line that is longer holds a file that was not split, and would be tokenised for minutes.
_MOST_BYTES = 8 * 2**20

_TYPE_NAMES = {str: "text", list: "a list", dict: "an object", bool: "true or false", type(None): "null"}


@dataclasses.dataclass(frozen=True)
class Document:
    """A text to be trained on whole; `meta` holds its provenance (spec, domain, document type, ...)."""

    id: str
    text: str
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Message:
    role: str  # one of ROLES
    content: str


@dataclasses.dataclass(frozen=True)
class Chat:
    """A conversation with at least one assistant turn; `name` is who speaks in those, None if unnamed."""

    id: str
    messages: tuple[Message, ...]
    name: str | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def content_id(content: Any) -> str:
    """Id of JSON-like `content`: the first 16 hex digits of its sha256, the same on every machine."""
    return files.fingerprint(content, length=16)


def read_documents(path: str | os.PathLike) -> Iterator[Document]:
    """Yields the documents of the JSONL file `path`, in file order, without holding the file in memory.

    Raises: UserError, on the first `next` that meets it, if the file is missing or holds no documents, or if a
        line is not UTF-8, not a JSON object, or lacks a non-empty `text`.
    """
    count = 0
    for where, row in read_objects(path):
        count += 1
        text = _take_text(row, "text", where)
        given_id = _take_optional_text(row, "id", where)
        yield Document(given_id or content_id(text), text, row)
    if not count:
        raise UserError(f"{path}: holds no documents; expected one JSON object with a field 'text' per line")


def read_chats(path: str | os.PathLike) -> Iterator[Chat]:
    """Yields the chats of the JSONL file `path`, in file order, without holding the file in memory.

    Raises: UserError, on the first `next` that meets it, if the file is missing or holds no chats, or if a line is
        not UTF-8, not a JSON object, or its `messages` are not role and non-empty content with an assistant turn.
    """
    count = 0
    for where, row in read_objects(path):
        count += 1
        messages = tuple(
            _to_message(message, f"{where}: message {number}")
            for number, message in enumerate(_take(row, "messages", list, where), start=1)
        )
        if not any(message.role == "assistant" for message in messages):
            raise UserError(f"{where}: chat without an assistant turn, so nothing to train on; add one or delete it")
        given_id = _take_optional_text(row, "id", where)
        name = _take_optional_text(row, "name", where)
        turns = [[message.role, message.content] for message in messages]
        yield Chat(given_id or content_id({"messages": turns, "name": name}), messages, name, row)
    if not count:
        raise UserError(f"{path}: holds no chats; expected one JSON object with a field 'messages' per line")


def read_objects(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ("path:line", object) for every line of a JSONL file that is not blank.

    Raises: UserError if the file cannot be read, or if a line is not UTF-8, not a JSON object or longer than 8 MiB.
    """
    try:
        file = open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        # Lines are split as bytes: text mode would not tell in which line a bad byte is.
        for number, line in enumerate(iter(lambda: file.readline(_MOST_BYTES + 1), b""), start=1):
            where = f"{path}:{number}"
            if len(line) > _MOST_BYTES:
                raise UserError(f"{where}: longer than {_MOST_BYTES >> 20} MiB; split it into rows, one a line")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
            if not text:
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                reason = f"{error.msg}, column {error.colno}"
                raise UserError(f"{where}: not JSON ({reason}); mend or delete the line") from None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not JSON that can be read ({error}); mend or delete the line") from None
            if not isinstance(row, dict):
                raise UserError(f"{where}: not a JSON object but {_type_name(row)}; write {{...}} on each line")
            yield where, row


def write_jsonl(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes one JSON object per line and returns how many; a reader sees the old file or the whole new one.

    `rows` may be a generator: it is written as it comes. If it raises, `path` is left as it was.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        count = 0
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
    return count


def _to_message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise UserError(f'{where}: not an object but {_type_name(value)}; write {{"role": ..., "content": ...}}')
    fields = dict(value)
    role = _take_text(fields, "role", where)
    content = _take_text(fields, "content", where)
    if role not in ROLES:
        raise UserError(f"{where}: unknown role '{role}'; use one of {', '.join(ROLES)}")
    # A field such as a tool call or a training weight would change what the turn means, so it is not passed over.
    extra = [key for key, field in fields.items() if field is not None]
    if extra:
        raise UserError(f"{where}: unknown field '{extra[0]}'; a message holds only role and content")
    return Message(role, content)


def _take(row: dict[str, Any], field: str, kind: type, where: str) -> Any:
    """Removes `field` from `row` and returns it."""
    if field not in row:
        raise UserError(f"{where}: no field '{field}'")
    value = row.pop(field)
    if not isinstance(value, kind):
        raise UserError(f"{where}: field '{field}' must be {_TYPE_NAMES[kind]}, not {_type_name(value)}")
    return value


def _take_text(row: dict[str, Any], field: str, where: str) -> str:
    text = _take(row, field, str, where)
    if not text.strip():
        raise UserError(f"{where}: field '{field}' is empty; fill it or delete the line")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: field '{field}' holds half of a surrogate pair (\\ud800 to \\udfff)") from None
    return text


def _take_optional_text(row: dict[str, Any], field: str, where: str) -> str | None:
    if row.get(field) is None:
        row.pop(field, None)
        return None
    return _take_text(row, field, where)


def _type_name(value: Any) -> str:
    return _TYPE_NAMES.get(type(value), "a number")
