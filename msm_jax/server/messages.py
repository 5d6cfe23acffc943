"""A chat's messages and tools, from OpenAI's form to that of templates (data/conversation.py)."""

import dataclasses
import json
from typing import Any

from msm_jax.data import conversation
from msm_jax.data.jinja_template import JinjaTemplate
from msm_jax.errors import UserError
from msm_jax.server.errors import ApiError
from msm_jax.server.fields import ChatFields, ChatMessage


def thinking(template: Any, fields: ChatFields) -> Any:
    """The template that thinks as it is asked to."""
    wanted, param = None, "chat_template_kwargs"
    if fields.chat_template_kwargs is not None and fields.chat_template_kwargs.enable_thinking is not None:
        wanted = "on" if fields.chat_template_kwargs.enable_thinking else "off"
    elif fields.reasoning_effort is not None:
        wanted, param = "off", "reasoning_effort"
    if wanted is None:
        return template
    try:
        if not isinstance(template, JinjaTemplate):
            raise UserError("this checkpoint's chat template knows no thinking")
        return dataclasses.replace(template, thinking=wanted)
    except UserError as error:
        raise ApiError(400, f"{param}: {error}", param) from None


def as_dicts(fields: ChatFields, speaker: str) -> list[dict[str, Any]]:
    """The messages as templates take them; `speaker` is who speaks in the answers.

    Raises: ApiError for what templates would pass over.
    """
    if not fields.messages:
        raise ApiError(400, "messages: must hold a message", "messages")
    return [_as_dict(message, place, speaker) for place, message in enumerate(fields.messages)]


def tools_of(fields: ChatFields) -> list[dict[str, Any]]:
    """The tools that the model is told of."""
    tools = [] if fields.tool_choice == "none" else fields.tools or []
    return [{"type": "function", "function": tool.function.model_dump(exclude_none=True)} for tool in tools]


def _as_dict(message: ChatMessage, place: int, speaker: str) -> dict[str, Any]:
    def refuse(field: str, why: str) -> ApiError:
        return ApiError(400, f"messages.{place}.{field}: {why}", f"messages.{place}.{field}")

    role = "system" if message.role == "developer" else message.role
    content = message.content
    if content is None:
        if role != "assistant" or not (message.tool_calls or message.reasoning_content):
            raise refuse("content", "is missing")
        content = ""
    elif not isinstance(content, str):
        content = "".join(part.text for part in content)
    if message.name and role != "tool" and (role, message.name) != ("assistant", speaker):
        raise refuse("name", "this model's chat template writes no names; leave it out")
    if role != "assistant" and (message.tool_calls or message.reasoning_content):
        raise refuse("role", f"a message of the {role} has no tool_calls and no reasoning_content")
    if message.reasoning_content:
        content = conversation.with_thoughts(message.reasoning_content, content)
    written: dict[str, Any] = {"role": role, "content": content}
    if role == "tool":
        written["name"] = message.name or ""
    if message.tool_calls:
        written["tool_calls"] = calls = []
        for call in message.tool_calls:
            try:
                arguments = json.loads(call.function.arguments or "{}")
            except (ValueError, RecursionError):
                arguments = None
            if not isinstance(arguments, dict):
                raise refuse("tool_calls", "arguments of a call must be a JSON object, as text")
            function = {"name": call.function.name, "arguments": arguments}
            calls.append({"type": "function", "id": call.id or "", "function": function})
    return written
