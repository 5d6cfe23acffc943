"""Chats as servers have them: messages with calls of tools -> a prompt; an answer -> thoughts, what is said, and calls.

Messages and tools are dicts as transformers takes them: {"role", "content"}, with "tool_calls" of
{"type": "function", "id", "function": {"name", "arguments": an object}}, and {"role": "tool", "content", "name"}.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msm_jax.corpus.records import Message
from msm_jax.data.chat import Template
from msm_jax.data.jinja_template import JinjaTemplate
from msm_jax.data.tokenizer import Tokenizer
from msm_jax.errors import UserError

OPEN, CLOSE = "<think>", "</think>"
_CALL, _END_OF_CALL = "<tool_call>", "</tool_call>"


class Call(NamedTuple):
    """A call of a tool, as it stands in the answer. `error`: why it cannot be read, if it cannot."""

    function: str
    arguments: dict[str, Any]
    source: str
    error: str | None = None


class Parsed(NamedTuple):
    """What an answer holds. `unfinished`: it was still thinking when it ended, so nothing of it is the answer."""

    thoughts: str
    text: str
    calls: tuple[Call, ...] = ()
    unfinished: bool = False


def render(
    template: Template, name: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> str:
    """The text of a generation prompt; `name` is who speaks in the answers.

    Raises: UserError if the template cannot write these messages, or knows no tools and there are some.
    """
    called = any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
    if not tools and not called:
        plain = [Message(message["role"], message["content"]) for message in messages]
        return template.render(plain, name, generation_prompt=True).text
    if not isinstance(template, JinjaTemplate) or not template.takes_tools:
        raise UserError(
            "this checkpoint's chat template knows no tools (none that are called in <tool_call> blocks); "
            "ask without tools, or choose a checkpoint whose template has them"
        )
    return template.render_tools(messages, tools)


def encode(tokenizer: Tokenizer, template: Template, text: str) -> tuple[int, ...]:
    """Ids of a prompt, with one token that begins it: that of the template, or else the tokenizer's. Raises: UserError
    if the text spells that token again."""
    ids, bos = tuple(tokenizer.encode(text, special=template.special)), tokenizer.bos_id
    if bos is None:
        return ids
    if template.bos and ids[:1] != [bos]:
        ids = bos, *ids
    if ids.count(bos) > 1:
        raise UserError("a prompt begins twice: its chat template, or a message, spells the tokenizer's bos again")
    return ids


def knows_thoughts(tokenizer: Tokenizer, template: Template) -> bool:
    """Whether the model writes thoughts between tags."""
    return OPEN in tokenizer.added_tokens or (isinstance(template, JinjaTemplate) and CLOSE in template.source)


def opens_thought(prompt: str) -> bool:
    """Whether the prompt itself ends with an opening tag."""
    return prompt.rstrip().endswith(OPEN)


def with_thoughts(thoughts: str, text: str) -> str:
    """The content of an earlier answer. Templates of models that think take thoughts from there, and leave out those of
    earlier turns."""
    return f"{OPEN}\n{thoughts}\n{CLOSE}\n\n{text}"


def parse(text: str, opened: bool, thinks: bool, tools: bool) -> Parsed:
    """Takes an answer apart.

    Args:
      opened: whether the prompt itself ends with an opening tag.
      thinks: whether the model knows tags of thoughts; where it does not, they count at the beginning alone.
      tools: whether calls of tools are looked for.
    """
    thoughts, said = [], text
    if opened or thinks or text.lstrip().startswith(OPEN):
        thoughts, said, inside = _split(text, opened)
        if inside:
            return Parsed("\n\n".join(filter(None, [said, *thoughts])).strip(), "", unfinished=True)
    joined = "\n\n".join(filter(None, thoughts))
    return Parsed(joined, *_calls_in(said)) if tools else Parsed(joined, said)


class Listener:
    """An answer that is taken apart while it is written, as `parse` does it when it is whole.

    What `add` and `end` return is never taken back, so a closing tag without an opening one comes too late for what
    stands before it, and what was said before a thought that does not end stays said.
    """

    def __init__(self, opened: bool, thinks: bool, tools: bool):
        self._opened, self._thinks, self._tools = opened, thinks, tools
        self._text = self._thoughts = self._said = ""

    def add(self, text: str) -> tuple[str, str]:
        """(what is new of the thoughts, of what is said), as far as it is certain."""
        self._text += text
        known = self._text[: len(self._text) - _begun(self._text)]
        if self._tools:
            known = known.partition(_CALL)[0]
        # White space waits for what comes after it: a tag would make it none of the answer.
        return self._new(*(part.rstrip() for part in self._parts(known)))

    def end(self) -> tuple[str, str, tuple[Call, ...]]:
        """The rest, and the calls."""
        thoughts, said = self._parts(self._text)
        said, calls = _calls_in(said) if self._tools else (said, ())
        return *self._new(thoughts, said), calls

    def _parts(self, text: str) -> tuple[str, str]:
        if not (self._opened or self._thinks or self._text.lstrip().startswith(OPEN)):
            return "", text
        thoughts, said, _ = _split(text, self._opened)
        return "\n\n".join(filter(None, thoughts)), said

    def _new(self, thoughts: str, said: str) -> tuple[str, str]:
        new = _after(self._thoughts, thoughts), _after(self._said, said)
        self._thoughts, self._said = thoughts, said
        return new


def _split(text: str, inside: bool) -> tuple[list[str], str, bool]:
    """(thoughts, what is said, whether the last thought does not end). Blocks may stand anywhere, and more than one."""
    first_open, first_close = text.find(OPEN), text.find(CLOSE)
    if first_close >= 0 and not 0 <= first_open < first_close:
        inside = True  # a closing tag alone: what stands before it was thought
    elif inside and text.lstrip().startswith(OPEN):
        text = text.lstrip()[len(OPEN) :]  # the model opens again what the prompt has opened
    thoughts, said, rest, found = [], [], text, CLOSE
    while True:
        before, found, rest = rest.partition(CLOSE if inside else OPEN)
        (thoughts if inside else said).append(before.strip() if inside or thoughts else before)
        if not found:
            break
        inside = not inside
    kept = [part for part in said if part.strip()] if thoughts else said
    return thoughts, "\n\n".join(kept), inside


def _calls_in(said: str) -> tuple[str, tuple[Call, ...]]:
    """What is said around the calls, and them."""
    said, *blocks = said.split(_CALL)
    calls = []
    for block in blocks:
        body, end, after = block.partition(_END_OF_CALL)
        calls.append(_call(body.strip(), _CALL + body + end))
        said += after
    return said.rstrip() if calls else said, tuple(calls)


def _call(body: str, source: str) -> Call:
    name, arguments, error = "", {}, None
    try:
        called = json.loads(body)
        name, arguments = called["name"], called.get("arguments", {})
        if isinstance(arguments, str):  # some write them as JSON within JSON
            arguments = json.loads(arguments)
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            raise TypeError("name must be text, and arguments an object")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        error = f"a call of a tool that cannot be read: {problem!r}: {body[:200]}"
        name, arguments = name if isinstance(name, str) and name else "unknown", {}
    return Call(name, dict(arguments), source, error)


def _begun(text: str) -> int:
    """Length of the end of `text` with which a tag may begin."""
    tags = (OPEN, CLOSE, _CALL)
    return max((n for n in range(1, 11) if any(len(tag) > n and text.endswith(tag[:n]) for tag in tags)), default=0)


def _after(told: str, now: str) -> str:
    """What `now` has beyond what was told."""
    if told.startswith(now):
        return ""
    return now[len(told) :] if now.startswith(told) else now
