"""What Inspect asks: a `ModelAPI` over the sampler. docs/inspect.md says how it is used."""

import asyncio
import collections
import dataclasses
import functools
import logging
import re
import secrets
import time
import weakref
from collections.abc import Sequence
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from msm_jax.corpus.records import Message
from msm_jax.data import conversation
from msm_jax.data.jinja_template import JinjaTemplate
from msm_jax.errors import UserError
from msm_jax.inspect import messages, models
from msm_jax.sampler.adapters import split_adapters
from msm_jax.sampler.request import Finish, Sampling, TokenLogprob
from msm_jax.sampler.sampler import parse_stop
from msm_jax.sampler.text import count_until_stop
from msm_jax.storage import files

_log = logging.getLogger(__name__)
_MAX_TOKENS = 4096  # where neither task nor user names a number: as the paper's answers
_CONNECTIONS = 512  # the engine keeps its own queue: whoever waits outside of it leaves rows idle
_DIGEST = re.compile(r"@([0-9a-f]{12})$")
_ASKED = {
    "max_tokens", "temperature", "top_p", "top_k", "seed", "stop_seqs", "frequency_penalty", "presence_penalty",
    "logit_bias", "num_choices", "logprobs", "top_logprobs", "reasoning_effort", "extra_body",
}  # fmt: skip
# What Inspect does by itself, or what says nothing of the answer.
_OF_INSPECT = {
    "max_retries", "timeout", "attempt_timeout", "stream_idle_timeout", "max_connections", "adaptive_connections",
    "system_message", "max_tool_output", "cache", "cache_prompt", "reasoning_history", "fail_on_refusal",
    "internal_tools",
}  # fmt: skip
_EXTRA = ("min_p", "repetition_penalty")


class Provider(ModelAPI):
    """A checkpoint, as Inspect asks for it.

    Args:
      model_name: PATH or PATH:ADAPTER, with @DIGEST behind it where Inspect repeats what stands in a log.
      model_args: adapter (NAME=DIR, several with commas), rows, dtype, chat_template and thinking, which are those of
        `msm_jax.load`.

    Raises: UserError if there is no such model, or if its digest is not the one named.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 (as Inspect has it; it is not changed)
        adapter: str | Sequence[str] | None = None,
        rows: int = 64,
        dtype: str | None = None,
        chat_template: str = "",
        thinking: str | None = None,
        **model_args: Any,
    ):
        if base_url:
            raise UserError(f"base_url is {base_url}; this model runs in this process, leave it out")
        if model_args:
            known = "adapter, rows, dtype, chat_template, thinking"
            raise UserError(f"-M {next(iter(model_args))}: there is no such setting; there are: {known}")
        if isinstance(thinking, bool):  # YAML reads on and off so
            thinking = "on" if thinking else "off"
        wanted = _DIGEST.search(model_name)
        given = _DIGEST.sub("", model_name)
        path, label, folder = _chosen(given, split_adapters(adapter))
        self.arm = models.open_arm(
            path, folder, dtype=dtype, rows=int(rows), chat_template=chat_template, thinking=thinking
        )
        if wanted and wanted[1] != self.arm.digest:
            raise UserError(f"{given}: is {self.arm.digest} now, and {wanted[1]} was asked for; its files have changed")
        # Inspect's cache knows a model by its name alone.
        name = f"{path}:{label}" if label else path
        super().__init__(f"{name}@{self.arm.digest}", None, None, [], config)
        self._calls: weakref.WeakKeyDictionary[Any, collections.Counter] = weakref.WeakKeyDictionary()
        self._outside: collections.Counter = collections.Counter()  # calls that belong to no sample
        self._shared: models.Shared | None = models.acquire(self.arm, self)
        self._encoded = functools.lru_cache(maxsize=256)(
            functools.partial(conversation.encode, self.arm.tokenizer, self.arm.template)
        )

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Raises: UserError for what this model cannot do, with the name of the field; RuntimeError if its numbers are
        damaged, or if it was closed meanwhile."""
        start = time.monotonic()
        template = self._template(config)
        if tools and tool_choice not in ("auto", "none"):
            raise UserError(f"tool_choice is {tool_choice!r}; this model cannot be made to call a tool, use 'auto'")
        tools = [] if tool_choice == "none" else tools
        text = messages.render(template, self.arm.name, input, tools)
        prompt = self._encoded(text)
        longest = self.arm.stored.decoder.max_length
        asked, cut = _sampling(config), False
        if longest and len(prompt) + asked.max_tokens > longest:
            asked, cut = dataclasses.replace(asked, max_tokens=max(longest - len(prompt), 1)), True
        if longest and len(prompt) >= longest:
            told = f"The prompt has {len(prompt)} tokens, and this model was made for {longest}."
            return ModelOutput.from_content(self.model_name, told, stop_reason="model_length", error=told)
        if config.max_connections is None and config.adaptive_connections in (None, True):
            _warn_of_connections()
        strings, ids = parse_stop(self.arm.tokenizer, asked.stop)
        # The arms of one engine may end their answers in different ways, so each request names its own.
        asked = dataclasses.replace(
            asked, stop=strings, stop_ids=(*self.arm.stops, *ids), ignore_end=True,
            seed=self._seed(config.seed, input),
        )  # fmt: skip
        drafts = await self._draw(prompt, asked, config.num_choices or 1)
        opened = conversation.opens_thought(text)
        choices = [self._choice(draft, prompt, asked, config, opened, bool(tools), cut) for draft in drafts]
        drawn = sum(count for _, count, _ in choices)
        thought = sum(thoughts for _, _, thoughts in choices)
        usage = ModelUsage(
            input_tokens=len(prompt), output_tokens=drawn, total_tokens=len(prompt) + drawn,
            reasoning_tokens=thought or None,
        )  # fmt: skip
        return ModelOutput(
            model=self.model_name, choices=[choice for choice, _, _ in choices], usage=usage,
            time=time.monotonic() - start,
        )  # fmt: skip

    async def _draw(self, prompt: Sequence[int], asked: Sampling, n: int) -> list["_Draft"]:
        if self._shared is None:  # Inspect keeps models, and may ask one again that it has closed
            self._shared = models.acquire(self.arm, self)
        found = self._shared.ready(self.arm) or await asyncio.to_thread(self._shared.load, self.arm)
        service, place = found
        drafts = [_Draft() for _ in range(n)]
        pieces = service.stream(prompt, asked, n, place)
        try:
            async for piece in pieces:
                draft = drafts[piece.index]
                draft.text += piece.text
                draft.tokens += piece.tokens
                draft.finish = piece.finish
        finally:
            await pieces.aclose()
        return drafts

    def _choice(
        self,
        draft: "_Draft",
        prompt: Sequence[int],
        asked: Sampling,
        config: GenerateConfig,
        opened: bool,
        tools: bool,
        cut: bool,
    ) -> tuple[ChatCompletionChoice, int, int]:
        """With the tokens that were drawn, and those of thoughts."""
        if draft.finish is Finish.ERROR:
            raise RuntimeError("the model gave no numbers for the next token; its weights are damaged")
        if draft.finish is Finish.CANCELLED:
            raise RuntimeError("the model was closed before it had answered")
        ids = [token.id for token in draft.tokens]
        tokens = draft.tokens[: count_until_stop(self.arm.tokenizer, prompt, ids, asked.stop)]
        parsed = conversation.parse(draft.text, opened, self._thinks, tools)
        reason = "stop" if draft.finish is Finish.STOP else "model_length" if cut else "max_tokens"
        if parsed.calls and reason == "stop":
            reason = "tool_calls"
        logprobs = Logprobs(content=[self._logprob(token) for token in tokens]) if config.logprobs else None
        message = ChatMessageAssistant(
            content=messages.content_of(parsed), model=self.model_name, source="generate",
            tool_calls=messages.calls_of(parsed) or None,
        )  # fmt: skip
        thoughts = len(self.arm.tokenizer.encode(parsed.thoughts)) if parsed.thoughts else 0
        return (
            ChatCompletionChoice(message=message, stop_reason=reason, logprobs=logprobs),
            len(tokens),
            min(thoughts, len(tokens)),
        )

    def _logprob(self, token: TokenLogprob) -> Logprob:
        spell = self.arm.tokenizer.spell
        others = [
            TopLogprob(token=spell([i]), logprob=value, bytes=_bytes(spell([i])))
            for i, value in sorted(token.likeliest.items(), key=lambda item: -item[1])
        ]
        text = spell([token.id])
        return Logprob(token=text, logprob=token.logprob, bytes=_bytes(text), top_logprobs=others or None)

    def _seed(self, seed: int | None, input: Sequence[ChatMessage]) -> int:
        """Inspect gives every epoch the same seed. What is drawn depends on sample, epoch and turn too, and on how
        often this turn of the sample was asked before; not on what else is asked at the same time."""
        if seed is None:
            return secrets.randbits(63)
        sample = _active_sample()
        turn = sum(message.role == "assistant" for message in input)
        where, calls = ["", 0], self._outside
        if sample is not None:
            where = [str(sample.sample.id), sample.epoch]
            calls = self._calls.setdefault(sample, collections.Counter())
        again = calls[seed, turn]
        calls[seed, turn] += 1
        return int(files.fingerprint([seed, *where, turn, again], length=16), 16) >> 1

    def _template(self, config: GenerateConfig) -> Any:
        """Raises: UserError if it knows no thinking, where the task says how much of it there is to be."""
        effort, template = config.reasoning_effort, self.arm.template
        if effort is None:
            return template
        if not isinstance(template, JinjaTemplate):
            raise UserError(f"reasoning_effort is {effort!r}; this checkpoint's chat template knows no thinking")
        if effort != "none":
            raise UserError(f"reasoning_effort is {effort!r}; this model knows 'none', or thinks as -M thinking says")
        return dataclasses.replace(template, thinking="off")

    @functools.cached_property
    def _thinks(self) -> bool:
        return conversation.knows_thoughts(self.arm.tokenizer, self.arm.template)

    def _writes(self, *roles: str) -> bool:
        turns = [Message(role, f"turn {number}") for number, role in enumerate(roles)]
        try:
            self.arm.template.render(turns, self.arm.name, generation_prompt=True)
        except UserError:
            return False
        return True

    async def count_tokens(self, input: str | list[ChatMessage], config: GenerateConfig | None = None) -> int:
        """Of a text its own; of messages, those of the prompt that they make."""
        if isinstance(input, str):
            return await self.count_text_tokens(input)
        try:
            return len(self._encoded(messages.render(self.arm.template, self.arm.name, input, [])))
        except UserError:  # messages that are no chat yet are counted one by one
            return await super().count_tokens(input, config)

    async def count_text_tokens(self, text: str) -> int:
        return len(self.arm.tokenizer.encode(text))

    async def tokenize(self, text: str) -> list[int]:
        return self.arm.tokenizer.encode(text)

    def max_tokens(self) -> int:
        return _MAX_TOKENS

    def max_connections(self) -> int:
        return _CONNECTIONS

    def connection_key(self) -> str:
        return self.arm.shared

    def should_retry(self, ex: Exception) -> bool:
        return False  # the same would come again

    def collapse_user_messages(self) -> bool:
        return not self._writes("user", "user")

    def collapse_assistant_messages(self) -> bool:
        return not self._writes("user", "assistant", "assistant", "user")

    def collapse_system_messages(self) -> bool:
        return not self._writes("system", "system", "user")

    def close(self) -> None:
        if self._shared is not None:
            self._shared = None
            models.release(self.arm, self)


@dataclasses.dataclass
class _Draft:
    """An answer that is being drawn."""

    text: str = ""
    tokens: list[TokenLogprob] = dataclasses.field(default_factory=list)
    finish: Finish | None = None


def _sampling(config: GenerateConfig) -> Sampling:
    """Raises: UserError naming a field that is out of range, or that this model does not know."""
    for field, value in config:
        if value is not None and field not in _ASKED | _OF_INSPECT and value is not False:
            raise UserError(f"{field} is {value!r}; this model knows no such setting, leave it out")
    extra = dict(config.extra_body or {})
    if unknown := [name for name in extra if name not in _EXTRA]:
        raise UserError(f"extra_body has {unknown[0]!r}; this model knows {' and '.join(_EXTRA)}")
    if config.top_logprobs is not None and not config.logprobs:
        raise UserError("top_logprobs is set, and logprobs is not; set both")
    if config.num_choices is not None and config.num_choices < 1:
        raise UserError(f"num_choices is {config.num_choices}; it must be 1 or more")
    given = {
        "temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k,
        "frequency_penalty": config.frequency_penalty, "presence_penalty": config.presence_penalty,
        "logit_bias": config.logit_bias, "stop": config.stop_seqs, **extra,
    }  # fmt: skip
    return Sampling(
        max_tokens=_MAX_TOKENS if config.max_tokens is None else config.max_tokens,
        logprobs=(config.top_logprobs or 0) if config.logprobs else None,
        **{name: value for name, value in given.items() if value is not None},
    )


def _chosen(given: str, adapters: dict[str, str]) -> tuple[str, str, str | None]:
    """(base, what the adapter is called, its folder) of PATH[:ADAPTER]. Raises: UserError if it is not clear which."""
    path, colon, label = given.rpartition(":")
    if not colon or label.startswith("//") or models.is_folder(given):
        path, label = given, ""
    if label:
        return path, label, adapters.get(label, label)
    if len(adapters) > 1:
        raise UserError(f"{given}: there are adapters {', '.join(adapters)}; name one of them as {given}:NAME")
    return path, *next(iter(adapters.items()), ("", None))


def _active_sample() -> Any:
    """The sample for which Inspect asks, if it does for one, and tells. Nothing public of Inspect does."""
    try:
        from inspect_ai.log._samples import sample_active

        sample = sample_active()
        return sample if sample is None or (sample.sample.id is not None and sample.epoch) else None
    except (ImportError, AttributeError):
        return None


def _bytes(text: str) -> list[int] | None:
    """None for a token that is a part of a character, of which the text shows nothing."""
    return None if "\ufffd" in text else list(text.encode())


@functools.cache
def _warn_of_connections() -> None:
    _log.warning(
        "Inspect asks at most some twenty answers at once if it is not told; give --max-connections, such as 300"
    )
