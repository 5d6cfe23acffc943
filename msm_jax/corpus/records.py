"""Documents and chats as JSONL: the form in which a corpus is written, read and handed on.

One JSON object per line, UTF-8. A document is `{"id", "text", ...}`; a chat is `{"id", "messages":
[{"role", "content"}, ...], "name"?: speaker of the assistant turns, ...}`. `id` may be absent in a file
that a user made: it is then derived from the content. All other fields are kept, as `meta`.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msm_jax.errors import UserError
from msm_jax.storage import files

ROLES = ("system", "user", "assistant")
# What others keep beside the messages of a chat: LlamaFactory and TRL, OpenAI, OpenOrca, LLaVA.
SYSTEM_PROMPTS = ("system", "system_prompt", "system_message")
_PARTS = (*SYSTEM_PROMPTS, "history", "tools", "functions", "image", "images", "video", "videos", "audio", "audios")

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
    """Id of JSON-like `content`, the same on every machine."""
    return files.fingerprint(content, length=16)


def read_documents(path: str | os.PathLike) -> Iterator[Document]:
    """Yields the documents of a JSONL file, in its order, without holding it in memory.

    Raises: UserError, on the first `next` that meets it, if `read_objects` does, if the file holds no documents, or if
        a line lacks a non-empty `text`.
    """
    for where, row in _read_some(path, "documents", "text"):
        text = _take_text(row, "text", where)
        given_id = _take_text(row, "id", where, may_lack=True)
        yield Document(given_id or content_id(text), text, row)


def read_chats(path: str | os.PathLike) -> Iterator[Chat]:
    """The same for chats, whose `messages` must be role and non-empty content, with an assistant turn."""
    for where, row in _read_some(path, "chats", "messages"):
        messages = tuple(
            to_message(message, f"{where}: message {number}")
            for number, message in enumerate(_take(row, "messages", list, where), start=1)
        )
        if not any(message.role == "assistant" for message in messages):
            raise UserError(f"{where}: chat without an assistant turn, so nothing to train on; add one or delete it")
        if lost := find_lost(row, messages[-1].role):
            raise UserError(f"{where}: {lost}; mend the line or delete it")
        given_id, name = (_take_text(row, field, where, may_lack=True) for field in ("id", "name"))
        turns = [[message.role, message.content] for message in messages]
        yield Chat(given_id or content_id({"messages": turns, "name": name}), messages, name, row)


def _read_some(path: str | os.PathLike, what: str, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = read_objects(path)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path}: holds no {what}; expected one JSON object with a field '{field}' per line")
    yield from itertools.chain([first], rows)


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
                raise UserError(f"{where}: not a JSON object but {_kind(row)}; write {{...}} on each line")
            yield where, row


def find_lost(row: Mapping[str, Any], last_role: str) -> str | None:
    """What a row has beside its messages that is a part of the chat, and that nothing would be trained on; or None."""
    for field in (*_PARTS, "chat_template_kwargs"):
        value = row.get(field)
        if isinstance(value, Mapping):  # switches of a template aside, such as enable_thinking
            value = [part for part in value.values() if not isinstance(part, bool)]
        if not is_empty(value):
            return f"'{field}' beside the messages would be lost"
    if row.get("label") is False:
        return "'label' is false, so its answer is not wanted"
    if last_role == "user" and not is_empty(row.get("chosen")):
        return "its last answer is in 'chosen'"
    return None


def is_empty(value: Any) -> bool:
    """Whether a field holds nothing: parquet has all columns in all rows, all fields in all structs, some as JSON."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    if isinstance(value, Mapping | list):
        return all(map(is_empty, value.values() if isinstance(value, Mapping) else value))
    return value is None


def write_jsonl(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes one JSON object per line, as they come, and returns how many. Readers see the old file or the whole new
    one; if `rows` raises, it stays the old one."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    count = 0
    try:
        with os.fdopen(handle, "wb") as file:
            for row in rows:
                try:
                    line = json.dumps(row, ensure_ascii=False).encode()
                except UnicodeEncodeError:  # half of a surrogate pair, in a field that is not trained on
                    line = json.dumps(row).encode()
                file.write(line + b"\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
    return count


def to_message(value: Any, where: str) -> Message:
    """A message of a corpus, or of a chat that a model is asked: `{"role", "content"}`.

    Raises: UserError, which begins with `where`, if it is none, is empty, or holds what would be passed over or cannot
        be tokenised.
    """
    if not isinstance(value, Mapping):
        raise UserError(f'{where}: not an object but {_kind(value)}; write {{"role": ..., "content": ...}}')
    # A field such as a tool call or a training weight would change what the turn means, so it is not passed over.
    extra = [key for key, field in value.items() if key not in ("role", "content") and not is_empty(field)]
    if extra:
        raise UserError(f"{where}: unknown field {extra[0]!r}; a message holds only role and content")
    fields = dict(value)
    role = _take_text(fields, "role", where)
    if role not in ROLES:
        raise UserError(f"{where}: unknown role {role!r}; use one of {', '.join(ROLES)}")
    # An empty system prompt is how a chat goes without the one that a template such as Qwen2.5's puts there.
    content = _take_text(fields, "content", where, may_be_empty=role == "system")
    return Message(role, content)


def _kind(value: Any) -> str:
    return _TYPE_NAMES.get(type(value), "a number")


def check_text(text: str, where: str) -> None:
    """Raises: UserError if `text` cannot be tokenised, or written to a file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where} holds half of a surrogate pair (\\ud800 to \\udfff)") from None


def _take(row: dict[str, Any], field: str, kind: type, where: str) -> Any:
    if field not in row:
        raise UserError(f"{where}: no field '{field}'")
    value = row.pop(field)
    if not isinstance(value, kind):
        raise UserError(f"{where}: field '{field}' must be {_TYPE_NAMES[kind]}, not {_kind(value)}")
    return value


def _take_text(row: dict[str, Any], field: str, where: str, may_lack: bool = False, may_be_empty: bool = False) -> Any:
    if may_lack and row.get(field) is None:
        return row.pop(field, None)
    text = _take(row, field, str, where)
    if not text.strip() and not may_be_empty:
        raise UserError(f"{where}: field '{field}' is empty; fill it or delete the line")
    check_text(text, f"{where}: field '{field}'")
    return text
