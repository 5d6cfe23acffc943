"""Rows as they are published, in any of the common forms, as documents and chats; and what chats are cleaned of."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msm_jax.corpus.filters.quality import ASSISTANTS
from msm_jax.corpus.records import ROLES, SYSTEM_PROMPTS, content_id, find_lost, is_empty
from msm_jax.errors import UserError
from msm_jax.storage import files

CHOICES = ("two_choices", "four_choices")

_QUESTIONS = ("prompt", "instruction", "question", "query")
_ANSWERS = ("response", "completion", "output", "answer", "answers", "solution")
_TEXTS = ("text", "content")
_TURNS = ("messages", "conversations", "conversation")
_SPEAKERS = {
    **{role: role for role in ROLES},
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant"},
    "developer": "system",  # OpenAI's name for it
}
_MESSAGE = (("role", "content"), ("from", "value"))  # its fields, in OpenAI's form and in ShareGPT's
_CHATS = (
    "'messages'; 'conversations' or 'conversation'; 'question', 'choices' and 'answer'; or one of "
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
    What it does not use is kept, and so becomes `meta`.

    Args:
      form: one of CHOICES, for questions with choices; None for the usual one.
      renamed: name of a column -> the name under which it is read.

    Raises: UserError, which names the source `where`, if there are no such columns, or of no form that is understood.
    """
    columns = set(columns)
    if missing := sorted(set(renamed) - columns):
        raise UserError(f"{where}: no column '{missing[0]}' to rename; there are {_list(columns)}")
    if taken := sorted(set(renamed.values()) & (columns - set(renamed))):
        raise UserError(f"{where}: there is a column '{taken[0]}' already, which would be lost; rename that one too")
    names = {renamed.get(column, column) for column in columns}
    has_choices = {"question", "choices", "answer"} <= names
    if form and not (chats and has_choices):
        raise UserError(f"{where}: form '{form}' needs question, choices and answer; there are {_list(columns)}")
    if not chats:
        convert = names.intersection(_TEXTS) and _document
    elif names.intersection(_TURNS):
        convert = _turns
    elif has_choices:
        convert = functools.partial(_choices, two=form == "two_choices")
    else:
        convert = names.intersection(_QUESTIONS) and names.intersection(_ANSWERS) and _pair
    if not convert:
        raise UserError(
            f"{where}: columns {_list(columns)} are of no form that is understood; {_UNDERSTOOD[chats]} (`columns` of "
            "an entry of a mix renames them)"
        )

    def read(row: Mapping[str, Any]) -> Item:
        row = {renamed.get(column, column): value for column, value in row.items()}
        found = convert(row)  # takes from the row what it uses
        return to_item(_with_the_rest(found, row) if chats else found, row, chats)

    return read


def to_item(found: Any, rest: Mapping[str, Any], chats: bool) -> Item:
    """The row of a text, or of messages, with the other fields that its source has."""
    field = "messages" if chats else "text"
    rest = {column: value for column, value in rest.items() if column != field}  # an empty one, where another was read
    given, name = (rest.pop(column, None) for column in ("id", "name"))
    # `name` is who speaks in a chat of ours. Elsewhere it may be anything.
    named = {"name": name} if chats and _is_text(name) else {}
    turns = [[message["role"], message["content"]] for message in found] if chats else []
    key = content_id({"messages": turns, "name": named.get("name")} if chats else found)
    return Item(key, {"id": given if _is_text(given) else key, field: found, **named, **rest})


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


def _document(row: dict[str, Any]) -> str:
    return _text(_only(row, _TEXTS))


def _turns(row: dict[str, Any]) -> list[dict[str, str]]:
    column = next((column for column in _TURNS if row.get(column) is not None), _TURNS[0])
    turns = row.pop(column, None)
    if column != "messages" and isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
        turns = [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]
    return _chat(turns)


def _pair(row: dict[str, Any]) -> list[dict[str, str]]:
    asked, answered = _only(row, _QUESTIONS), _only(row, _ANSWERS)
    turns = asked if isinstance(asked, list) else [{"role": "user", "content": _with_input(row, asked)}]
    answered = answered if isinstance(answered, list) else [answered]
    if not isinstance(answered[0], Mapping):  # several answers, and no turns
        answered = [{"role": "assistant", "content": answered[0]}]
    return _chat([*turns, *answered])


def _only(row: dict[str, Any], columns: Sequence[str]) -> Any:
    """Takes from the row what stands in one of these columns. In two, one of them would be lost."""
    found = [column for column in columns if not _is_blank(row.get(column))]
    if not found:
        raise Unusable("empty")
    if any(row[column] != row[found[0]] for column in found):
        named = " and ".join(f"'{column}'" for column in found)
        raise Unusable(f"with {named}: rename what is not meant by `columns` of a mix")
    return row.pop(found[0])


def _with_input(row: dict[str, Any], asked: Any) -> str:
    more = [value for column in ("input", "context") if not _is_blank(value := row.pop(column, None))]
    return "\n\n".join(map(_text, (asked, *more)))


def _choices(row: dict[str, Any], two: bool) -> list[dict[str, str]]:
    question, choices, right = (row.pop(column, None) for column in ("question", "choices", "answer"))
    if not isinstance(choices, list) or len(choices) < 2:
        raise Unusable("no choices")
    if type(right) is not int or not 0 <= right < len(choices):
        raise Unusable("no answer among the choices")
    question, choices = _with_input(row, question), [_text(choice) for choice in choices]
    # What they say: two of MMLU may differ in a blank. Case stays, for Aa is another genotype than AA.
    said = [" ".join(choice.split()).rstrip(".") for choice in choices]
    wrong = [choice for choice, text in zip(choices, said, strict=True) if text != said[right]]
    if not wrong or not two and len(set(said)) < len(said):
        raise Unusable("equal choices")
    if two:
        # The same on every machine, and in whatever order rows come.
        chance, second = divmod(int(files.fingerprint([question, choices, right]), 16), 2)
        pair = [choices[right], wrong[chance % len(wrong)]]
        choices, right = pair[::-1] if second else pair, second
    options = [f"{chr(ord('A') + index)}) {choice}" for index, choice in enumerate(choices)]
    answer = options[right] if two else f"The answer is {options[right].rstrip('.')}."
    return [
        {"role": "user", "content": "\n".join([question, "", *options])},
        {"role": "assistant", "content": answer},
    ]


def _chat(turns: Any) -> list[dict[str, str]]:
    turns = _parsed(turns)  # TFDS has no lists of what may be anything
    if isinstance(turns, Mapping) and all(isinstance(values, list) for values in turns.values()):
        if len(set(map(len, turns.values()))) <= 1:  # a sequence of objects is, in TFDS, an object of sequences
            turns = [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)]
    messages = _messages(turns)
    if not any(message["role"] == "assistant" for message in messages):
        raise Unusable("no assistant turn")
    return messages


def _messages(turns: Any) -> list[dict[str, str]]:
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise Unusable("no list of messages")
    messages = []
    for turn in turns:
        role, content = next((pair for pair in _MESSAGE if turn.get(pair[0]) is not None), _MESSAGE[0])
        # A field such as a tool call would change what the turn means.
        if not all(is_empty(value) for key, value in turn.items() if key not in (role, content)):
            raise Unusable("other fields in a message")
        speaker = _SPEAKERS.get(turn.get(role).strip().lower()) if isinstance(turn.get(role), str) else None
        if not speaker:
            raise Unusable("another role than system, user, assistant")
        messages.append({"role": speaker, "content": _text(turn.get(content))})
    return messages


def _with_the_rest(messages: list[dict[str, str]], row: dict[str, Any]) -> list[dict[str, str]]:
    """A chat with what its row has beside it: a system prompt, and the turns before (LlamaFactory's history)."""
    before = _history(row.pop("history", None))
    if messages[: len(before)] == before:
        before = []
    prompts = [_text(prompt) for column in SYSTEM_PROMPTS if not is_empty(prompt := row.pop(column, None))]
    if lost := find_lost(row, messages[-1]["role"]):
        raise Unusable(lost)
    for turns in (before, messages):
        if turns and turns[0]["role"] == "system":
            prompts.append(turns.pop(0)["content"])
    if len(set(prompts)) > 1:
        raise Unusable("two system prompts")
    return [*({"role": "system", "content": prompt} for prompt in prompts[:1]), *before, *messages]


def _history(turns: Any) -> list[dict[str, str]]:
    if is_empty(turns):
        return []
    turns = _parsed(turns)
    if isinstance(turns, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in turns):
        turns = [{"role": role, "content": text} for pair in turns for role, text in zip(ROLES[1:], pair, strict=True)]
    return _messages(turns)


def _text(value: Any) -> str:
    match value:  # OpenAI's parts; of several it is not known what stands between them
        case [{"type": "text", "text": str(text), **rest}] if is_empty(rest):
            value = text
    if _is_blank(value):
        raise Unusable("empty")
    if not isinstance(value, str):
        raise Unusable("not text")
    if not _is_text(value):
        raise Unusable("not UTF-8")
    return value


def _is_text(value: Any) -> bool:
    """Not half of a surrogate pair, that is."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def _is_blank(value: Any) -> bool:
    return value is None or value == [] or isinstance(value, str) and not value.strip()


def _parsed(turns: Any) -> Any:
    try:
        return json.loads(turns) if isinstance(turns, str) else turns
    except (ValueError, RecursionError):
        raise Unusable("no list of messages") from None


def _list(columns: Iterable[str]) -> str:
    return ", ".join(sorted(columns)) or "none"
