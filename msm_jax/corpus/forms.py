"""Rows as they are published, in any of the common forms, as documents and chats; and what chats are cleaned of."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msm_jax import files
from msm_jax.corpus.quality import ASSISTANTS
from msm_jax.corpus.records import ROLES, content_id
from msm_jax.errors import UserError

CHOICES = ("two_choices", "four_choices")

_QUESTIONS = ("prompt", "instruction", "question", "query")
_ANSWERS = ("response", "completion", "output", "answer", "answers", "solution")
_TEXTS = ("text", "content")
_SPEAKERS = {
    **{role: role for role in ROLES},
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant"},
}
_CHATS = (
    "'messages'; 'conversations'; 'question', 'choices' and 'answer'; or one of "
    f"{', '.join(_QUESTIONS)} with one of {', '.join(_ANSWERS)}"
)
_UNDERSTOOD = {True: f"chats have {_CHATS}", False: f"documents have {' or '.join(_TEXTS)}"}

_NAMES = "|".join(map(re.escape, ASSISTANTS))
_MAKERS = f"{_NAMES}|Google|Microsoft|Meta|Amazon|Alibaba(?: Cloud)?|xAI"
_KIND = r"(?:AI|A\.I\.|artificial intelligence|(?:language )?model|LLM|assistant|chatbot)"
_OTHER = re.compile(
    # I am ChatGPT; my name is Claude; I'm an AI assistant called Bard
    r"(?i:\b(?:i am|i['’]m|my name is)(?: an?| the)?"
    r"(?: (?:ai|large|language|virtual|helpful|model|assistant|chatbot),?)*(?: called| named)?) "
    rf"(?:{_NAMES})\b|"
    # as a language model created by OpenAI; I'm an assistant that was trained by researchers at Google
    rf"(?i:\b(?:as|i am|i['’]m) an? (?:[\w-]+,? ){{0,3}}?{_KIND}\b[^.!?\n]{{0,30}}?"
    rf"\b(?:created|trained|developed|made|built|designed) by(?: \w+){{0,3}}) (?:{_MAKERS})\b|"
    rf"(?i:\bi was (?:created|trained|developed|made|built|designed) by(?: \w+){{0,3}}) (?:{_MAKERS})\b"
)
_NO_OPINIONS = re.compile(
    rf"\bas an? (?:[\w-]+ ){{0,3}}?{_KIND}\b[^.!?\n]{{0,60}}?"
    r"\bi (?:(?:do not|don['’]t|cannot|can['’]t|can not)(?: \w+){0,2}? (?:have|hold|form|possess|feel|express)|lack|"
    r"have no|am (?:not able|unable) to (?:have|hold|form|express|feel))\b[^.!?\n]{0,40}?"
    r"\b(?:opinion|feeling|emotion|preference|belief|view|favorite|favourite|desire)s?\b",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Item:
    """A document or a chat: `row` as records.read_documents or read_chats reads it; `key` is the id of its content."""

    key: str
    row: dict[str, Any]


class Unusable(Exception):
    """A row that cannot be a document or chat; the message is the reason, in words that can be counted."""


def reader(
    columns: Iterable[str], chats: bool, form: str | None, renamed: Mapping[str, str], where: str
) -> Callable[[Mapping[str, Any]], Item]:
    """How rows with these columns become documents or chats: a function that raises `Unusable` for a row that cannot.

    What a form does not use is kept in the row, so that it becomes `meta`.

    Args:
      form: one of CHOICES, for questions with choices; None for the usual one.
      renamed: name of a column -> the name under which it is read.
      where: the source, for errors.

    Raises: UserError if there are no such columns, or if they are of no form that is understood.
    """
    columns = set(columns)
    if missing := sorted(set(renamed) - columns):
        raise UserError(f"{where}: no column '{missing[0]}' to rename; there are {_list(columns)}")
    names = {renamed.get(column, column) for column in columns}
    if form and not (chats and _has_choices(names)):
        raise UserError(f"{where}: form '{form}' needs question, choices and answer; there are {_list(columns)}")
    if not chats:
        text = _first(_TEXTS, names)
        convert = text and (lambda row: _document(row, text))
    elif "messages" in names:
        convert = _messages
    elif "conversations" in names:
        convert = _conversations
    elif _has_choices(names):
        convert = _two_choices if form == "two_choices" else _all_choices
    else:
        question, answer = _first(_QUESTIONS, names), _first(_ANSWERS, names)
        convert = question and answer and (lambda row: _pair(row, question, answer))
    if not convert:
        raise UserError(
            f"{where}: columns {_list(columns)} are of no form that is understood; {_UNDERSTOOD[chats]} (`columns` of "
            "an entry of a mix renames them)"
        )

    def read(row: Mapping[str, Any]) -> Item:
        row = {renamed.get(column, column): value for column, value in row.items()}
        found = convert(row)  # takes from the row what it uses
        return to_item(found, row, chats)

    return read


def to_item(found: Any, rest: Mapping[str, Any], chats: bool) -> Item:
    """The row of a text, or of messages, with the other fields that its source has."""
    rest = dict(rest)
    given, name = rest.pop("id", None), rest.pop("name", None)
    # `name` is who speaks in a chat of ours. Elsewhere it may be anything.
    named = {"name": name} if chats and isinstance(name, str) and name.strip() else {}
    if chats:
        turns = [[message["role"], message["content"]] for message in found]
        key = content_id({"messages": turns, "name": named.get("name")})
    else:
        key = content_id(found)
    own = given if isinstance(given, str) and given.strip() else key
    return Item(key, {"id": own, "messages" if chats else "text": found, **named, **rest})


def unclean(messages: Sequence[Mapping[str, str]], *own_names: str) -> str | None:
    """Why a chat is no example for an assistant with a name and views of its own; None if nothing is wrong.

    It may claim to be one of `own_names`, or made by one.
    """
    for message in messages:
        if message["role"] == "assistant":
            claims = _OTHER.search(message["content"])
            if claims and not any(name.lower() in claims[0].lower() for name in own_names):
                return "claims to be another assistant"
            if _NO_OPINIONS.search(message["content"]):
                return "says that it has no opinions"
    return None


def _document(row: dict[str, Any], column: str) -> str:
    return _text(row.pop(column, None))


def _messages(row: dict[str, Any]) -> list[dict[str, str]]:
    turns = row.pop("messages", None)
    if isinstance(turns, str):  # TFDS has no lists of what may be anything
        turns = _parse(turns)
    if isinstance(turns, Mapping) and all(isinstance(values, list) for values in turns.values()):
        # A sequence of objects is, in TFDS, an object of sequences.
        turns = [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)]
    return _chat(turns, "role", "content")


def _conversations(row: dict[str, Any]) -> list[dict[str, str]]:
    turns = row.pop("conversations", None)
    if isinstance(turns, str):
        turns = _parse(turns)
    if isinstance(turns, list) and all(isinstance(turn, str) for turn in turns):
        turns = [{"from": ("user", "assistant")[index % 2], "value": turn} for index, turn in enumerate(turns)]
    return _chat(turns, "from", "value")


def _pair(row: dict[str, Any], question: str, answer: str) -> list[dict[str, str]]:
    asked, answered = _text(row.pop(question, None)), row.pop(answer, None)
    if isinstance(answered, list) and answered:
        answered = answered[0]
    if row.get("input"):
        asked = f"{asked}\n\n{_text(row['input'])}"
    row.pop("input", None)
    system = row.pop("system", None)
    turns = [("system", system)] if system else []
    turns += [("user", asked), ("assistant", answered)]
    return _chat([{"role": role, "content": content} for role, content in turns], "role", "content")


def _all_choices(row: dict[str, Any]) -> list[dict[str, str]]:
    question, choices, right = _question(row)
    said = f"The answer is {_label(right)}) {choices[right].rstrip('.')}."
    return _asked(question, choices, said)


def _two_choices(row: dict[str, Any]) -> list[dict[str, str]]:
    question, choices, right = _question(row)
    # The same on every machine, and in whatever order rows come.
    chance = int(files.fingerprint([question, choices, right]), 16)
    chance, first = divmod(chance, 2)
    wrong = [choice for index, choice in enumerate(choices) if index != right]
    pair = [choices[right], wrong[chance % len(wrong)]]
    if first:
        pair.reverse()
    return _asked(question, pair, f"{_label(first)}) {choices[right]}")


def _asked(question: str, choices: Sequence[str], answer: str) -> list[dict[str, str]]:
    options = "\n".join(f"{_label(index)}) {choice}" for index, choice in enumerate(choices))
    return [{"role": "user", "content": f"{question}\n\n{options}"}, {"role": "assistant", "content": answer}]


def _question(row: dict[str, Any]) -> tuple[str, list[str], int]:
    question, choices, right = (row.pop(column, None) for column in ("question", "choices", "answer"))
    if not isinstance(choices, list) or len(choices) < 2:
        raise Unusable("no choices")
    if not isinstance(right, int) or not 0 <= right < len(choices):
        raise Unusable("no answer among the choices")
    return _text(question), [_text(choice) for choice in choices], right


def _chat(turns: Any, role: str, content: str) -> list[dict[str, str]]:
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise Unusable("no list of messages")
    messages = []
    for turn in turns:
        # A field such as a tool call would change what the turn means.
        if any(value is not None for key, value in turn.items() if key not in (role, content)):
            raise Unusable("other fields in a message")
        speaker = turn.get(role)
        if speaker not in _SPEAKERS:
            raise Unusable("another role than system, user, assistant")
        messages.append({"role": _SPEAKERS[speaker], "content": _text(turn.get(content))})
    if not any(message["role"] == "assistant" for message in messages):
        raise Unusable("no assistant turn")
    return messages


def _text(value: Any) -> str:
    if value is None or isinstance(value, str) and not value.strip():
        raise Unusable("empty")
    if not isinstance(value, str):
        raise Unusable("not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unusable("not UTF-8") from None
    return value


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise Unusable("no list of messages") from None


def _has_choices(names: set[str]) -> bool:
    return {"question", "choices", "answer"} <= names


def _label(index: int) -> str:
    return chr(ord("A") + index)


def _first(wanted: Sequence[str], names: set[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _list(columns: Iterable[str]) -> str:
    return ", ".join(sorted(columns)) or "none"
