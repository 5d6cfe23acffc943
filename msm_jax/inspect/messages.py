"""Inspect's messages -> the text of a prompt; the text of an answer -> thoughts, what is said, and calls of tools."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from inspect_ai.model import ChatMessage, ChatMessageAssistant, ContentReasoning, ContentText
from inspect_ai.tool import ToolCall, ToolInfo

from msm_jax.corpus.records import Message
from msm_jax.data.chat import Template
from msm_jax.data.jinja_template import JinjaTemplate
from msm_jax.errors import UserError

OPEN, CLOSE = "<think>", "</think>"
_CALL, _END_OF_CALL = "<tool_call>", "</tool_call>"


class Parsed(NamedTuple):
    """What an answer holds. `unfinished`: it was still thinking when it ended, so nothing of it is the answer."""

    thoughts: str
    text: str
    calls: tuple[ToolCall, ...] = ()
    unfinished: bool = False


def render(template: Template, name: str, messages: Sequence[ChatMessage], tools: Sequence[ToolInfo]) -> str:
    """The text of a generation prompt; `name` is who speaks in the answers.

    Raises: UserError if the template cannot write these messages, or knows no tools and there are some.
    """
    called = any(message.role == "tool" or getattr(message, "tool_calls", None) for message in messages)
    if not tools and not called:
        plain = [Message(message.role, _text(message)) for message in messages]
        return template.render(plain, name, generation_prompt=True).text
    if not isinstance(template, JinjaTemplate) or not template.takes_tools:
        raise UserError(
            "this checkpoint's chat template knows no tools (none that are called in <tool_call> blocks); "
            "choose a task without tools, or a checkpoint whose template has them"
        )
    return template.render_tools([_as_dict(message) for message in messages], [_tool(tool) for tool in tools])


def parse(text: str, opened: bool, thinks: bool, tools: bool) -> Parsed:
    """Takes an answer apart.

    Args:
      opened: whether the prompt itself ends with an opening tag.
      thinks: whether the model knows tags of thoughts; where it does not, they count at the beginning alone.
      tools: whether calls of tools are looked for.
    """
    thoughts, said = "", text
    if opened or thinks or text.lstrip().startswith(OPEN):
        thoughts, said, unfinished = _split(text, opened)
        if unfinished:
            return Parsed(thoughts, "", unfinished=True)
    if not tools:
        return Parsed(thoughts, said)
    calls = []
    said, *blocks = said.split(_CALL)
    for number, block in enumerate(blocks):
        body, _, after = block.partition(_END_OF_CALL)
        calls.append(_call(body.strip(), number))
        said += after
    return Parsed(thoughts, said.strip() if calls else said, tuple(calls))


def _split(text: str, inside: bool) -> tuple[str, str, bool]:
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
    if inside:
        return "\n\n".join(filter(None, [*said, *thoughts])).strip(), "", True
    kept = [part for part in said if part.strip()] if thoughts else said
    return "\n\n".join(filter(None, thoughts)), "\n\n".join(kept), False


def content_of(parsed: Parsed) -> str | list[Any]:
    """As Inspect keeps it: thoughts are a part of their own."""
    if not parsed.thoughts:
        return parsed.text
    return [ContentReasoning(reasoning=parsed.thoughts), ContentText(text=parsed.text)]


def _text(message: ChatMessage) -> str:
    """Raises: UserError if it holds something else than text."""
    if isinstance(message.content, str):
        return message.content
    thoughts, texts = [], []
    for part in message.content:
        if isinstance(part, ContentReasoning):
            thoughts.append(part.reasoning)
        elif isinstance(part, ContentText):
            texts.append(part.text)
        else:
            raise UserError(f"a message holds {part.type}; this model reads text alone")
    thought, text = "\n".join(thoughts), "\n".join(texts)
    # Templates of models that think take it from there, and leave out what is of earlier turns.
    return f"{OPEN}\n{thought}\n{CLOSE}\n\n{text}" if thoughts else text


def _as_dict(message: ChatMessage) -> dict[str, Any]:
    if message.role == "tool":
        answer = f"Error: {message.error.message}" if message.error else _text(message)
        return {"role": "tool", "content": answer, "name": message.function or ""}
    written: dict[str, Any] = {"role": message.role, "content": _text(message)}
    if isinstance(message, ChatMessageAssistant) and message.tool_calls:
        written["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.function, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return written


def _tool(tool: ToolInfo) -> dict[str, Any]:
    parameters = tool.parameters.model_dump(exclude_none=True)
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


def _call(body: str, number: int) -> ToolCall:
    """A call that cannot be read is one with an error, which Inspect tells the model."""
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
    call = ToolCall(id=f"call_{number}", function=name, arguments=dict(arguments))
    return dataclasses.replace(call, parse_error=error)
