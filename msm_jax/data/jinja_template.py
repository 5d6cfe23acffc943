"""A checkpoint's own chat template (Jinja), and where in its text the assistant's turns lie.

The templates are programs by others, so they run in Jinja's sandbox. They mark no assistant turns themselves (the
`{% generation %}` blocks of transformers stand in few of them), so the turns are found by the control tokens around
them. That is safe because a content that spells a control token is refused.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.sandbox

from msm_jax.corpus.records import Message
from msm_jax.data import huggingface
from msm_jax.data.chat import ChatTemplate, Rendered, Template, Turn
from msm_jax.data.tokenizer import Tokenizer, load_tokenizer
from msm_jax.errors import UserError

THINKING = ("default", "on", "off", "tag")
DATE = "26 Jul 2024"  # as Llama-3.1's template has it
_TEMPLATES = pathlib.Path(__file__).with_name("templates")
_SWITCH = "enable_thinking"
_TAG = "/no_think"
_PROBE = "PROBE"
_CHAT = [Message(role, _PROBE) for role in ("user", "assistant")] * 2
_REASONING = ("<think>", "</think>")
_MARK = re.compile(r"[^\w\s].*\w.*[^\w\s]")  # a word between signs; white space and words may be added tokens too


@dataclasses.dataclass(frozen=True)
class JinjaTemplate:
    """A chat template of transformers; implements `chat.Template`. Can be pickled, hashed and written as JSON.

    What the model is to write in an assistant turn, and so what is trained, is all from the end of the generation
    prompt to the control token that closes the turn, with that token and without the newline after it. `render` fails
    where the prompt of the last answer is not exactly the text up to where that answer is trained.

    Thinking of Qwen3 (other templates know only "default"):
      "default": as the template has it: reasoning is written, and the block stays empty for an answer without it.
      "on": `enable_thinking=True`, the same for Qwen3.
      "off": `enable_thinking=False`: the prompt supplies an empty block, so that it is not trained.
      "tag": " /no_think" ends the system message and the last user message; the model writes the empty block itself,
          as the paper's models without reasoning. A chat whose last answer holds reasoning is written as by "default".
    Reasoning is `<think>...</think>` at the start of an assistant content. Qwen3 leaves it out of all answers but
    those after the last user message.

    Raises: UserError if the source knows no switch for "on" and "off", or if a field is out of range.
    """

    source: str
    special_tokens: tuple[str, ...]  # the tokenizer's control tokens, and plain ones that stand around turns
    bos_token: str = ""
    eos_token: str = ""
    named_tokens: tuple[tuple[str, str], ...] = ()  # the others that have names: ("pad_token", "<|endoftext|>"), ...
    thinking: str = "default"  # one of THINKING
    date: str = DATE  # what day it is in templates that tell it: fixed, or the ids would change from day to day
    bos: ClassVar[bool] = False
    special: ClassVar[bool] = True

    def __post_init__(self):
        if self.thinking not in THINKING:
            raise UserError(f"thinking is '{self.thinking}'; use one of {', '.join(THINKING)}")
        _day(self.date)
        if self.thinking in ("on", "off"):
            _compiled(self.source, self.date)  # which tells what is wrong with the source itself
            if _SWITCH not in _variables(self.source, self.date):
                raise UserError(
                    f"thinking is '{self.thinking}', but this chat template knows no {_SWITCH}; use 'default'"
                )

    def render(self, messages: Sequence[Message], name: str = "", generation_prompt: bool = False) -> Rendered:
        """The text of a chat; and, but for a generation prompt, the part of it that the model is to write.

        Args: name: not used; these templates name no speaker.

        Raises: UserError if a content spells a control token; if the template itself fails, refuses the messages or
            leaves one out; if it cannot be told where the turns lie; if the last answer would not follow its own
            generation prompt, or holds reasoning while thinking is "off".
        """
        for number, message in enumerate(messages, start=1):
            if found := self._tokens.search(message.content):
                raise UserError(
                    f"message {number} holds the control token '{found[0]}', which would be read as the token; "
                    "take it out"
                )
        reasons = bool(messages) and _reasons(messages[-1])
        if self.thinking == "off" and reasons:
            raise UserError(f"message {len(messages)} holds reasoning, but thinking is 'off'; take it out")
        if self.thinking == "tag" and not reasons:
            messages = _tagged(messages)
        text = self._run(messages, generation_prompt)
        self._check_written(messages, text, generation_prompt)
        return Rendered(text, () if generation_prompt else self._trained_spans(messages, text))

    @property
    def takes_tools(self) -> bool:
        """Whether it tells the model of tools, and has it call them as Hermes and Qwen do, in <tool_call> blocks."""
        return "<tool_call>" in self.source and "tools" in _variables(self.source, self.date)

    def render_tools(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
        """A generation prompt for messages as transformers takes them, with tool calls and what tools answered.

        Raises: UserError if the template knows no tools, fails, or if a text in a message spells a control token.
        """
        if not self.takes_tools:
            raise UserError(
                "this checkpoint's chat template knows no tools; ask without them, or give another template"
            )
        for number, message in enumerate(messages, start=1):
            for text in _texts(message):
                if found := self._tokens.search(text):
                    raise UserError(f"message {number} holds the control token '{found[0]}'; take it out")
        return self._write(messages, generation_prompt=True, tools=tools)

    def _check_written(self, messages: Sequence[Message], text: str, generation_prompt: bool) -> None:
        """Some templates know no system messages, or take no texts but lists of parts, and leave out what they lack."""
        for index, message in enumerate(messages):
            if message.content.strip() in text:
                continue
            others = [*messages]
            others[index] = dataclasses.replace(message, content=_PROBE)
            if self._run(others, generation_prompt) == text:
                raise UserError(
                    f"chat template: it leaves out message {index + 1}, of the {message.role}; take the message out, "
                    "or use another template"
                )

    def _trained_spans(self, messages: Sequence[Message], text: str) -> tuple[tuple[int, int], ...]:
        turns = sum(message.role == "assistant" for message in messages)
        if not turns:
            return ()
        borders = find_borders(self)
        spans = []
        for header in re.finditer(re.escape(borders.header), text):
            close = self._tokens.search(text, header.end())
            if not close or close[0] != borders.close:
                raise UserError(f"chat template: assistant turn {len(spans) + 1} is not closed by '{borders.close}'")
            supplied = borders.prompt if text.startswith(borders.prompt, header.start()) else borders.header
            spans.append((header.start() + len(supplied), close.end()))
        if len(spans) != turns:
            raise UserError(
                f"chat template: it writes {len(spans)} assistant turns for {turns} assistant messages, so it "
                "cannot be told what to train on; use another template"
            )
        if len(messages) > 1 and messages[-1].role == "assistant":
            # The text before the last answer must be the one that the model will be asked with.
            if self._run(messages[:-1], generation_prompt=True) != text[: spans[-1][0]]:
                raise UserError(
                    "chat template: what stands before the last answer is not its generation prompt; "
                    "change the chat or use another template"
                )
        return tuple(spans)

    @functools.cached_property
    def _tokens(self) -> re.Pattern:
        # Of two tokens that begin alike the longer is meant. Without any, a pattern that nothing fulfils.
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def _run(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        return self._write([{"role": turn.role, "content": turn.content} for turn in messages], generation_prompt)

    def _write(
        self,
        messages: Sequence[Mapping[str, Any]],
        generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        switch = {_SWITCH: self.thinking == "on"} if self.thinking in ("on", "off") else {}
        try:
            return _compiled(self.source, self.date).render(
                dict(self.named_tokens),
                messages=list(messages),
                add_generation_prompt=generation_prompt,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
                tools=list(tools) if tools else None,
                documents=None,
                date_string=self.date,
                **switch,
            )
        except UserError:
            raise
        except Exception as error:  # a program by others: anything may go wrong in it
            raise UserError(f"chat template: {error}") from None


class Borders(NamedTuple):
    prompt: str  # what a generation prompt appends to the messages
    header: str  # what every assistant turn begins with: `prompt`, or its first part
    close: str  # the control token that ends it


@functools.lru_cache(maxsize=32)
def find_borders(template: JinjaTemplate) -> Borders:
    """What stands around assistant turns, learned from how the template writes a chat of two. Raises: UserError."""

    def fail(reason: str) -> NoReturn:
        raise UserError(f"chat template: {reason}, so it cannot be told what to train on; use another template")

    whole = template._run(_CHAT, generation_prompt=False)
    prompts, turns = [], []
    for end in (1, 3):
        before, prompted = (template._run(_CHAT[:end], generation) for generation in (False, True))
        if not prompted.startswith(before) or not whole.startswith(before):
            fail("a message changes the text of those before it")
        prompts.append(prompted[len(before) :])
        turns.append(whole[len(before) :])
    if prompts[0] != prompts[1]:
        fail("its generation prompts differ")
    header = os.path.commonprefix([*prompts, *turns])
    if not template._tokens.search(header):
        fail("no control token begins an assistant turn")
    closes = []
    for turn in turns:
        close = template._tokens.search(turn, len(header))
        if not close or _PROBE not in turn[len(header) : close.start()]:
            fail("no control token ends an assistant turn")
        closes.append(close[0])
    if closes[0] != closes[1]:
        fail(f"'{closes[0]}' ends one assistant turn and '{closes[1]}' the next")
    return Borders(prompts[0], header, closes[0])


@functools.lru_cache(maxsize=32)
def closing_token(template: JinjaTemplate) -> str | None:
    """The control token that ends an answer: the one that is trained on or, where a template cannot be trained on, the
    first after an answer at the end of a chat, or else before the next turn. None if there is none."""
    with contextlib.suppress(UserError):
        return find_borders(template).close
    for roles in (("user", "assistant"), ("user", "assistant", "user"), ("system", "user", "assistant")):
        with contextlib.suppress(UserError):
            text = template._run([Message(role, _PROBE) for role in roles], generation_prompt=False)
            # Counted from the end, for some templates repeat what a user says first.
            after = text.rsplit(_PROBE, len(roles) - roles.index("assistant"))[1:2]
            if close := template._tokens.search("".join(after)):
                return close[0]
    return None


def load_chat_template(
    folder: str | os.PathLike,
    override: str = "",
    thinking: str = "default",
    date: str = DATE,
    for_training: bool = True,
) -> JinjaTemplate:
    """The chat template of the checkpoint in `folder`.

    Args:
        override: another template instead: a name in `msm_jax/data/templates`, the path of a `.jinja` file, or Jinja.
        for_training: whether it must tell where assistant turns lie; without that, a model can still be asked.

    Raises: UserError if there is no template, or none that can be trained on where that is wanted.
    """
    source = read_override(override) if override else huggingface.read_chat_template(folder)
    if not source:
        raise UserError(f"{folder}: this checkpoint has no chat template; give one ({_override_help()})")
    named = huggingface.read_named_tokens(folder)
    tokenizer = load_tokenizer(folder)
    # Where no file names a bos, the tokenizer itself may still begin texts with one.
    bos = "" if tokenizer.bos_id is None else tokenizer.spell([tokenizer.bos_id])
    bos, eos, specials = named.get("bos_token", bos), named.get("eos_token", ""), tuple(tokenizer.special_tokens)
    template = JinjaTemplate(
        source, specials, bos, eos, named_tokens=tuple(named.items()), thinking=thinking, date=date
    )
    template = dataclasses.replace(template, special_tokens=specials + _plain_marks(template, tokenizer))
    if for_training:
        find_borders(template)
    return template


def make_template(chat: Mapping[str, Any], folder: str | os.PathLike, for_training: bool = True) -> Template:
    """The template that a configuration describes, or the model.json of a trained model: {"template", "thinking"} as
    `load_chat_template` takes them, or {role: (prefix, suffix)} for `ChatTemplate`. `folder` has the tokenizer."""
    if "template" in chat:
        return load_chat_template(folder, chat["template"], chat["thinking"], for_training=for_training)
    return ChatTemplate(**{role: Turn(*affixes) for role, affixes in chat.items()})


def _plain_marks(template: JinjaTemplate, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Added tokens that are no control tokens, but stand around turns all the same, and are read as one there."""
    try:
        text = template._run(_CHAT, generation_prompt=False)
        ids = tokenizer.encode(text, special=True)
    except UserError:
        return ()
    around = "".join(text.split(_PROBE)[1:3])  # between the first three contents
    return tuple(
        token
        for token, i in tokenizer.added_tokens.items()
        # What reasoning is written between stands around no turn: contents hold it.
        if token in around and ids.count(i) == text.count(token) and _MARK.fullmatch(token) and token not in _REASONING
    )


def _tagged(messages: Sequence[Message]) -> list[Message]:
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
    return [
        dataclasses.replace(message, content=f"{message.content} {_TAG}")
        if (message.role == "system" or i == last) and not message.content.endswith(_TAG)
        else message
        for i, message in enumerate(messages)
    ]


def _reasons(message: Message) -> bool:
    """Whether it is an answer with reasoning; an empty block is none."""
    before, found, _ = message.content.partition(_REASONING[1])
    return message.role == "assistant" and bool(found and before.split(_REASONING[0])[-1].strip())


def read_override(override: str) -> str:
    """The Jinja that `override` of `load_chat_template` stands for. Raises: UserError if there is no such file."""
    if "{%" in override or "{{" in override:
        return override
    path = pathlib.Path(override) if override.endswith(".jinja") else _TEMPLATES / f"{override}.jinja"
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"chat template '{override}': no such file; use {_override_help()}") from None


def _override_help() -> str:
    names = ", ".join(sorted(path.stem for path in _TEMPLATES.glob("*.jinja")))
    return f"the path of a .jinja file, or one of: {names}"


@functools.lru_cache(maxsize=32)
def _compiled(source: str, date: str) -> jinja2.Template:
    try:
        return _environment(date).from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"chat template, line {error.lineno}: {error.message}") from None


@functools.lru_cache(maxsize=32)
def _variables(source: str, date: str) -> frozenset[str]:
    """What the template is told from outside."""
    return frozenset(jinja2.meta.find_undeclared_variables(_environment(date).parse(source)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, Sequence):
        for part in value:
            yield from _texts(part)


def _day(date: str) -> datetime.datetime:
    try:
        return datetime.datetime.strptime(date, "%d %b %Y")
    except ValueError:
        raise UserError(f"chat template: date is '{date}'; write it as '{DATE}'") from None


def _environment(date: str) -> jinja2.Environment:
    """As transformers runs chat templates, but for the date."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _day(date).strftime
    return environment


class _GenerationBlocks(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`: its content, as if it stood alone."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # Jinja's own filter escapes for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise UserError(f"chat template: {message}")
