"""Inspect's messages and tools -> those of data/conversation.py; what an answer holds -> Inspect's."""

from collections.abc import Sequence
from typing import Any

from inspect_ai.model import ChatMessage, ChatMessageAssistant, ContentReasoning, ContentText
from inspect_ai.tool import ToolCall, ToolInfo

from msm_jax.data import conversation
from msm_jax.data.chat import Template
from msm_jax.errors import UserError


def render(template: Template, name: str, messages: Sequence[ChatMessage], tools: Sequence[ToolInfo]) -> str:
    """As `conversation.render`."""
    return conversation.render(template, name, [_as_dict(message) for message in messages], [_tool(t) for t in tools])


def content_of(parsed: conversation.Parsed) -> str | list[Any]:
    """As Inspect keeps it: thoughts are a part of their own."""
    if not parsed.thoughts:
        return parsed.text
    return [ContentReasoning(reasoning=parsed.thoughts), ContentText(text=parsed.text)]


def calls_of(parsed: conversation.Parsed) -> list[ToolCall]:
    """A call that cannot be read is one with an error, which Inspect tells the model."""
    return [
        ToolCall(id=f"call_{number}", function=call.function, arguments=call.arguments, parse_error=call.error)
        for number, call in enumerate(parsed.calls)
    ]


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
    return conversation.with_thoughts(thought, text) if thoughts else text


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
