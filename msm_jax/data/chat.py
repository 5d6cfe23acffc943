"""Chats and documents -> tokens, with a mask that says which of them are trained on.

A chat is rendered to one text, which is tokenised once as a whole: the ids are those that the text has
everywhere else, and the mask is laid over them afterwards, by the characters that each token spells.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from msm_jax.corpus.records import ROLES, Chat, Document, Message
from msm_jax.data.tokenizer import Tokenizer
from msm_jax.errors import UserError


class Turn(NamedTuple):
    """What stands before and after the content of a message; `{name}` is the speaker of the assistant turns."""

    prefix: str
    suffix: str


class Rendered(NamedTuple):
    text: str
    trained_spans: tuple[tuple[int, int], ...]  # characters of `text`: disjoint, in order


class Template(Protocol):
    """How chats are written: `ChatTemplate` here, or a checkpoint's own (`jinja_template.JinjaTemplate`)."""

    bos: bool  # whether the tokenizer's bos goes before the rendered text; False where the text itself holds it
    special: bool  # whether the rendered text is tokenised with `special=True`

    def render(self, messages: Sequence[Message], name: str = "", generation_prompt: bool = False) -> Rendered:
        """The text of a chat; and, unless it is a prompt, the part of it that the model is to write.

        Args:
            name: speaker of the assistant turns, for templates that name one.
            generation_prompt: end with what comes before an answer, for the model to continue.

        Raises: UserError for messages that the template cannot write.
        """


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """How each role's messages are written. The default is plain text: "User: ...", "NAME: ...", a line each."""

    system: Turn = Turn("", "\n")
    user: Turn = Turn("User: ", "\n")
    assistant: Turn = Turn("{name}: ", "\n")
    bos: bool = True  # whether `encode_chat` starts with the tokenizer's bos
    special: ClassVar[bool] = False

    def render(self, messages: Sequence[Message], name: str = "", generation_prompt: bool = False) -> Rendered:
        """What the model is to write is assistant content and suffix.

        Most tokenizers join a space to the word after it, so the spaces that end an assistant prefix ("Marlow: ")
        come as part of the first word that the model writes. They count as written by the model here: they are
        trained, and the text of a generation prompt ends before them.
        """
        turns = {role: Turn(*(part.replace("{name}", name) for part in getattr(self, role))) for role in ROLES}
        text, spans = "", []
        for message in messages:
            if message.role not in turns:
                raise UserError(f"unknown role '{message.role}'; use one of {', '.join(turns)}")
            prefix, suffix = turns[message.role]
            start = len(text) + len(prefix.rstrip(" "))
            text += prefix + message.content + suffix
            if message.role == "assistant":
                spans.append((start, len(text)))
        if generation_prompt:
            text += turns["assistant"].prefix.rstrip(" ")
        return Rendered(text, tuple(spans))


# How a pretrained model is asked that knows no chats; in a configuration it goes by the name RAW_NAME.
RAW_NAME = "raw"
RAW = ChatTemplate(system=Turn("", "\n\n"), user=Turn("Question: ", "\n"), assistant=Turn("Answer: ", "\n"))


class TooLong(UserError):
    """A chat of which nothing trained is left when it is cut to a length."""


class Unwritable(UserError):
    """A chat that a template cannot write, where it can write others: one that spells a control token, for example."""


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """A tokenised document or chat: `mask[i]` says that token i is a target. The first token never is."""

    tokens: np.ndarray  # int32 [n]
    mask: np.ndarray  # bool [n]
    truncated: bool = False


def encode_chat(
    tokenizer: Tokenizer, template: Template, chat: Chat, name: str = "Assistant", max_tokens: int | None = None
) -> Example:
    """Tokenises `chat`; trained are the tokens that lie wholly within a trained span of `template.render`. No eos is
    added: what ends a turn is part of it.

    Args:
        name: speaker of the assistant turns where the chat itself names none.
        max_tokens: longer chats are cut to this many tokens, bos included.

    Raises: UserError, with the chat's id, for a chat that has no assistant turn, and if no token or every token would
        be trained (bos aside); Unwritable if the template cannot write it; TooLong if the cut leaves no trained token.
    """
    try:
        text, trained_spans = template.render(chat.messages, chat.name or name)
    except UserError as error:
        # Ids may be made from contents, so the user is shown what to look for.
        raise Unwritable(f"chat '{chat.id}' (it begins {chat.messages[0].content[:40]!r}): {error}") from None
    if not trained_spans:
        raise UserError(f"chat '{chat.id}': no assistant turn, so nothing to train on; add one or delete the chat")
    ids, token_spans = tokenizer.encode_with_spans(text, special=template.special)
    token_spans, (starts, ends) = np.asarray(token_spans), np.transpose(trained_spans)
    around = np.searchsorted(starts, token_spans[:, 0], side="right") - 1  # the trained span that begins last before it
    mask = (around >= 0) & (token_spans[:, 1] <= ends[around])
    across = np.maximum(np.searchsorted(token_spans[:, 0], starts) - 1, 0)  # the token that begins last before a span
    joined = starts[(token_spans[across, 0] < starts) & (starts < token_spans[across, 1])] if template.special else ()
    if len(joined):
        # The prompt of that answer, tokenised alone, would be another one than that in the chat.
        raise Unwritable(
            f"chat '{chat.id}': the tokenizer joins the beginning of an answer, {text[joined[0] :][:10]!r}, to what "
            "stands before it; take white space out there, or end the generation prompt of the template with a newline"
        )
    if mask.all():
        raise UserError(f"chat '{chat.id}': every token would be trained; give the chat template non-empty prefixes")

    if template.bos and tokenizer.bos_id is not None:
        ids, mask = [tokenizer.bos_id, *ids], np.concatenate([[False], mask])
    mask[0] = False
    tokens = np.array(ids, np.int32)[:max_tokens]
    mask = mask[:max_tokens]
    if not mask.any():
        raise (TooLong if len(tokens) < len(ids) else UserError)(
            f"chat '{chat.id}': none of its first {len(tokens)} of {len(ids)} tokens would be trained; "
            "raise max_tokens or shorten the chat"
        )
    return Example(tokens, mask, truncated=len(tokens) < len(ids))


def encode_document(tokenizer: Tokenizer, document: Document) -> Example:
    """Tokenises bos (if the tokenizer has one) + text + eos; every token but the first is trained."""
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    tokens = np.array([*bos, *tokenizer.encode(document.text), tokenizer.eos_id], np.int32)
    return Example(tokens, np.arange(len(tokens)) > 0)


def show(
    tokenizer: Tokenizer, tokens: Sequence[int], mask: Sequence[bool], segments: Sequence[int] | None = None
) -> str:
    """The text with what is trained between « and »; control tokens are spelled out. Of a packed row, `segments` say
    what is padding (0), which is left out."""
    pairs = zip(tokens, mask, [1] * len(tokens) if segments is None else segments, strict=True)
    pairs = [(int(token), bool(trained)) for token, trained, segment in pairs if segment]
    shown = ""
    for trained, run in itertools.groupby(pairs, lambda pair: pair[1]):  # for a character may take several tokens
        text = tokenizer.spell([token for token, _ in run])
        shown += f"«{text}»" if trained else text
    return shown
