"""A request's fields -> what the sampler is asked for."""

import dataclasses
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from msm_jax.data import conversation
from msm_jax.errors import UserError
from msm_jax.sampler.language_model import LanguageModel
from msm_jax.sampler.request import Sampling, check_stop_ids
from msm_jax.sampler.sampler import parse_stop
from msm_jax.server.errors import ApiError
from msm_jax.server.fields import ChatFields, TextFields, read
from msm_jax.server.messages import as_dicts, thinking, tools_of

_MOST_LOGPROBS = 1 << 22  # numbers that are held of one request until it is answered
_TEXT_TOKENS = 16  # max_tokens of a text where none is named: as OpenAI has it
_STOPS, _STOP_LENGTH = 16, 1000  # characters; all are looked for in each block that is drawn
_NAMES = {"stop_ids": "stop_token_ids", "ignore_end": "ignore_eos"}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may ask for.

    Attributes:
      prompt_tokens: of a prompt.
      tokens: of an answer; also what a chat gets that names no number.
      n: answers to one prompt.
      waiting: answers that may wait for a row.
      body: bytes of a request.
    """

    prompt_tokens: int = 16384
    tokens: int = 4096
    n: int = 1024
    waiting: int = 4096
    body: int = 4 << 20


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request. Answer i of prompt p has the index p * n + i.

    Attributes:
      model: its name, as it was asked for.
      prompts: ids of each.
      adapter: its place in the engine.
      opened, thinks, tools: of a chat, as `conversation.parse` takes them.
      include_usage: at the end of a stream.
      echo: whether answers begin with their prompts, and log-probabilities with those of the prompts' tokens.
    """

    model: str
    prompts: tuple[tuple[int, ...], ...]
    sampling: Sampling
    n: int
    adapter: int
    stream: bool
    include_usage: bool
    chat: bool
    opened: bool = False
    thinks: bool = False
    tools: bool = False
    echo: bool = False
    id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    @property
    def samples(self) -> int:
        return self.n * len(self.prompts)

    def sampling_of(self, prompt: int) -> Sampling:
        """Prompts of one request share its seed, and are told apart by their place."""
        return dataclasses.replace(self.sampling, stream=prompt)


class Reader:
    """Bodies of requests -> what they ask `model` for; `name` is the base's. Threads may share it."""

    def __init__(self, model: LanguageModel, name: str, limits: Limits):
        self.model, self.limits = model, limits
        self.adapters: dict[str, str | None] = {name: None}  # by the names that OpenAI's `model` may have
        for adapter in model.adapters:
            for alias in (f"{name}:{adapter}", adapter):
                if alias in self.adapters:
                    raise UserError(f"two models would be called {alias!r}; give another --name, or name the adapters")
                self.adapters[alias] = adapter
        self.listed = [name, *(f"{name}:{adapter}" for adapter in model.adapters)]

    def chat(self, body: bytes) -> Asked:
        """Raises: ApiError, or UserError, for what cannot be asked."""
        fields = read(ChatFields, body)
        adapter = self.adapter_of(fields.model)
        voice = self.model.voice_of(adapter)
        if voice.template is None:
            raise ApiError(400, "this checkpoint has no chat template; ask /v1/completions", param="messages")
        template, messages, tools = thinking(voice.template, fields), as_dicts(fields, voice.name), tools_of(fields)
        tokenizer = self.model.tokenizer
        try:
            text = conversation.render(template, voice.name, messages, tools)
            prompt = conversation.encode(tokenizer, template, text)
        except UserError as error:
            raise ApiError(400, f"messages: {error}", param="messages") from None
        return self._asked(
            fields, "messages", [prompt], adapter, self.limits.tokens, chat=True,
            opened=conversation.opens_thought(text), thinks=conversation.knows_thoughts(tokenizer, template),
            tools=bool(tools),
        )  # fmt: skip

    def text(self, body: bytes) -> Asked:
        """Raises: ApiError, or UserError, for what cannot be asked."""
        fields = read(TextFields, body)
        adapter = self.adapter_of(fields.model)
        given = fields.prompt
        one = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
        prompts = [given] if one else given
        if not prompts:
            raise ApiError(400, "prompt: must hold a text", param="prompt")
        if len(prompts) > self.limits.n + self.limits.waiting:  # before all of them are tokenised
            raise ApiError(400, f"prompt: {len(prompts)} prompts are more than can wait here", param="prompt")
        ids = [self.model.encode(p, "prompt", adapter) if isinstance(p, str) else p for p in prompts]
        if fields.echo and fields.stream:
            raise ApiError(400, "echo and stream are both set; an answer with its prompt comes as a whole", "echo")
        return self._asked(fields, "prompt", ids, adapter, _TEXT_TOKENS, chat=False, echo=bool(fields.echo))

    def adapter_of(self, name: str) -> str | None:
        """Raises: ApiError if there is no such model."""
        if name not in self.adapters:
            there = ", ".join(self.listed)
            raise ApiError(404, f"there is no model {name!r}; there are: {there}", "model", "model_not_found")
        return self.adapters[name]

    def _asked(
        self,
        fields: ChatFields | TextFields,
        source: str,
        prompts: Sequence[Sequence[int]],
        adapter: str | None,
        default_tokens: int,
        **chat: bool,
    ) -> Asked:
        """`source`: the field that the prompts are from."""
        n = 1 if fields.n is None else fields.n
        if not 1 <= n <= self.limits.n:
            raise ApiError(400, f"n is {n}; it must be 1 or more, and at most {self.limits.n}", "n")
        self._check_prompts(prompts, source)
        max_tokens = self._answer_length(fields, source, max(map(len, prompts)), default_tokens)
        self._check_logprobs(fields, n, prompts, max_tokens)
        if fields.stream_options is not None and not fields.stream:
            raise ApiError(400, "stream_options is set, and stream is not; set both", "stream_options")
        return Asked(
            fields.model, tuple(map(tuple, prompts)), self._sampling(fields, adapter, max_tokens), n,
            self.model.place_of(adapter), bool(fields.stream),
            bool(fields.stream_options and fields.stream_options.include_usage), **chat,
        )  # fmt: skip

    def _check_prompts(self, prompts: Sequence[Sequence[int]], source: str) -> None:
        size, most = self.model.model.config.vocab_size, self.limits.prompt_tokens
        for prompt in prompts:
            if not prompt:
                raise ApiError(400, f"{source}: a prompt has no token to go on from; give it a text", source)
            if len(prompt) > most:
                raise _too_long(f"a prompt has {len(prompt)} tokens; at most {most} are read", source)
            if outside := next((i for i in prompt if not 0 <= i < size), None):
                raise ApiError(400, f"{source}: a prompt has the id {outside}, which the model does not know", source)

    def _check_logprobs(
        self, fields: ChatFields | TextFields, n: int, prompts: Sequence[Sequence[int]], max_tokens: int
    ) -> None:
        """What one small request asks for must not fill the memory."""
        name, likeliest = fields.likeliest[0], fields.likeliest[1]
        if likeliest is None:
            return
        echo = isinstance(fields, TextFields) and fields.echo
        tokens = sum((len(prompt) if echo else 0) + max_tokens for prompt in prompts) * n
        if tokens * (likeliest + 1) > _MOST_LOGPROBS:
            raise ApiError(
                400, f"{name}: {tokens} tokens with {likeliest + 1} log-probabilities each are more than one answer "
                "holds; ask for fewer tokens, answers or log-probabilities", name,
            )  # fmt: skip

    def _answer_length(self, fields: ChatFields | TextFields, source: str, prompt: int, default: int) -> int:
        """max_tokens. What nobody has named ends where the model's context does; what somebody has must fit."""
        longest, limit = self.model.model.config.max_length, self.limits.tokens
        name, asked = fields.length
        least = 0 if isinstance(fields, TextFields) and fields.echo else 1  # of a prompt that is scored
        if asked is not None and not least <= asked <= limit:
            raise ApiError(400, f"{name} is {asked}; it must be {least} or more, and at most {limit}", name)
        room = longest - prompt if longest else limit
        if asked is not None and room < asked:
            raise _too_long(
                f"a prompt of {prompt} tokens and {name}={asked} exceed the {longest} tokens that the model was made "
                "for; shorten one of the two",
                name,
            )
        if asked is None and room < 1:
            raise _too_long(f"the {prompt} tokens of a prompt leave no room for an answer, of {longest}", source)
        return min(default, limit, room) if asked is None else asked

    def _sampling(self, fields: ChatFields | TextFields, adapter: str | None, max_tokens: int) -> Sampling:
        likeliest, logprobs = fields.likeliest
        stop = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
        if len(stop) > _STOPS or any(len(text) > _STOP_LENGTH for text in stop):
            raise ApiError(400, f"stop: at most {_STOPS} texts of {_STOP_LENGTH} characters are looked for", "stop")
        engine, ends = self.model.sampler.engine, list(fields.stop_token_ids or ())
        given = {
            name: getattr(fields, name)
            for name in (
                "seed", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
                "frequency_penalty",
            )
        }  # fmt: skip
        if given["top_k"] == -1:  # as vLLM has it
            given["top_k"] = 0
        echo = isinstance(fields, TextFields) and fields.echo
        try:
            sampling = Sampling(
                max_tokens=max_tokens, logprobs=logprobs, prompt_logprobs=logprobs if echo else None, stop=tuple(stop),
                logit_bias=_biases(fields.logit_bias or {}, engine.vocabulary), ignore_end=bool(fields.ignore_eos),
                **{name: value for name, value in given.items() if value is not None},
            )  # fmt: skip
            texts, ids = parse_stop(self.model.tokenizer, sampling.stop)
            ends += ids
            if not sampling.ignore_end and adapter in self.model.voices:
                ends += self.model.voices[adapter].stop_ids
            check_stop_ids(set(ends) | (set() if sampling.ignore_end else set(engine.end_ids)), engine.vocabulary)
        except UserError as error:  # it begins with the field's name
            name, _, rest = str(error).partition(" ")
            param = likeliest if name == "logprobs" else _NAMES.get(name, name)
            if name.isdigit():
                param, rest = "stop_token_ids", f"has too many: {error}"
            raise ApiError(400, f"{param} {rest}", param) from None
        return dataclasses.replace(sampling, stop=texts, stop_ids=tuple(ends))


def _too_long(message: str, param: str) -> ApiError:
    return ApiError(400, message, param, "context_length_exceeded")


def _biases(given: Mapping[str, Any], vocabulary: int) -> dict[int, float]:
    """Raises: UserError, which begins with the field."""
    biases = {}
    for token, bias in given.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10 and int(token) < vocabulary):
            raise UserError(f"logit_bias has the id {token[:20]!r}; ids are from 0 to {vocabulary - 1}")
        if isinstance(bias, bool):
            raise UserError(f"logit_bias gives {token} the bias {bias}; it maps ids to numbers up to 1000")
        biases[int(token)] = bias
    return biases
