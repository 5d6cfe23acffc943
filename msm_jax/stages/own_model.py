"""A checkpoint as the model that writes corpora: loaded, and asked in this process.

Calls that wait at the same time are decoded together. A reply depends on its request and on the checkpoint alone, not
on what is decoded beside it (but for rounding: products of other shapes may round otherwise).
"""

import asyncio
import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from msm_jax.checkpoints import weights
from msm_jax.checkpoints.sources import is_hub_id, resolve
from msm_jax.data.huggingface import read_chat_template
from msm_jax.data.jinja_template import JinjaTemplate
from msm_jax.data.stops import stop_ids
from msm_jax.data.tokenizer import load_tokenizer
from msm_jax.errors import UserError
from msm_jax.llm.request import Finish, Rejected, Reply, Request, Usage, without_thoughts
from msm_jax.sampler import Completion
from msm_jax.sampler.language_model import Chat, LanguageModel, load
from msm_jax.storage import files

# Prefix of the checkpoint's name in keys of the store.
PREFIX = "own/"
# Seconds without a new call after which those that wait are decoded, though there is room for more.
_PAUSE = 0.05


def name_of(path: str) -> str:
    """The checkpoint at `path` (a folder, a URL of one, or a Hugging Face id), as it stands in keys.

    An id has its commit, a folder a digest of all that changes replies: weights, shape, tokenizer and chat template, of
    an adapter's base too. Where the folder lies does not matter. Weights are not loaded (`weights.fingerprint_of` says
    what is read of them), those of an id not even fetched.

    Raises: UserError if there is no such checkpoint, or if it cannot be read.
    """
    if is_hub_id(path):
        return f"{PREFIX}{path}@{_commit(path)}"
    return f"{PREFIX}{pathlib.PurePath(resolve(path)).name}-{files.fingerprint(_identity(weights.open_model(path)))}"


def _identity(stored: weights.Stored) -> dict[str, Any]:
    text = base = None
    if stored.tokenizer:
        folder = weights.local_tokenizer(stored.tokenizer)
        tokenizer = load_tokenizer(folder)
        stops = stop_ids(tokenizer, None, *filter(None, [folder, weights.beside(stored)]))
        text = [tokenizer.fingerprint, stops, read_chat_template(folder)]
    if stored.lora and stored.base:
        of_hub = is_hub_id(stored.base)
        base = _commit(stored.base, stored.revision) if of_hub else _identity(weights.open_model(stored.base))
    return {
        "weights": weights.fingerprint_of(stored),
        "decoder": dataclasses.asdict(stored.decoder),
        "lora": dataclasses.asdict(stored.lora) if stored.lora else None,
        "text": text,
        "chat": dict(stored.chat) if stored.chat else None,
        "base": base,
    }


@functools.cache  # one for the whole run, though the repository may get another one meanwhile
def _commit(name: str, revision: str | None = None) -> str:
    return pathlib.Path(resolve(name, revision, weights=False)).name


@dataclasses.dataclass(eq=False)
class _Call:
    request: Request
    reply: asyncio.Future


class OwnModel:
    """The checkpoint at `path`; implements `request.Generator`. Its weights are loaded when it is first asked.

    It answers without thinking, where its chat template knows of that.

    Args:
      at_once: calls that are decoded together, at most.
      max_output_tokens: tokens of one reply, at most.

    Raises: UserError as `name_of` does.
    """

    def __init__(self, path: str, at_once: int, max_output_tokens: int = 65_536):
        self.model = name_of(path)
        self._path, self._at_once, self._max_output_tokens = path, at_once, max_output_tokens
        self._calls: list[_Call] = []  # that wait to be decoded
        self._work: asyncio.Task | None = None
        # One: a second batch beside the first would need its memory, and the first would get half as far.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decode")

    def max_output_tokens(self, request: Request) -> int:
        return min(request.max_tokens, self._max_output_tokens)

    async def close(self) -> None:
        """What is being decoded is not interrupted, but nobody hears of it; the thread ends after it."""
        if self._work:
            self._work.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def reply(self, request: Request) -> Reply:
        """Raises: Rejected if the model has no room for the prompt and the answer, or if the chat template cannot write
        it; UserError if the checkpoint cannot be loaded or asked, and if the memory does not suffice."""
        call = _Call(request, asyncio.get_running_loop().create_future())
        self._calls.append(call)
        if self._work is None:
            self._work = asyncio.create_task(self._decode_all())
        return await call.reply

    async def _decode_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._calls:
                await self._gather()
                batch = self._next_batch()
                if not batch:
                    continue
                requests = [call.request for call in batch]
                try:
                    replies = await loop.run_in_executor(self._thread, self._decode, requests)
                except Exception as error:
                    replies = [error] * len(batch)
                for call, reply in zip(batch, replies, strict=True):
                    if call.reply.done():  # given up while it was decoded
                        continue
                    if isinstance(reply, Exception):
                        call.reply.set_exception(reply)
                    else:
                        call.reply.set_result(reply)
        finally:
            self._work = None

    async def _gather(self) -> None:
        """Waits until there are calls enough, or until no more come."""
        before = -1
        while before < len(self._calls) < self._at_once:
            before = len(self._calls)
            await asyncio.sleep(_PAUSE)

    def _next_batch(self) -> list[_Call]:
        """The first of the calls, and those after it that can be decoded with it. Nobody waits for those left out."""
        self._calls = [call for call in self._calls if not call.reply.done()]
        if not self._calls:
            return []
        wanted = self._settings(self._calls[0].request)
        batch = [call for call in self._calls if self._settings(call.request) == wanted][: self._at_once]
        self._calls = [call for call in self._calls if call not in batch]
        return batch

    def _settings(self, request: Request) -> tuple[float, int]:
        return request.temperature, self.max_output_tokens(request)

    def _decode(self, requests: Sequence[Request]) -> list[Reply | Exception]:
        """One for each of `requests`, which have equal settings."""
        model = self._loaded
        replies: dict[int, Reply | Exception] = {}
        prompts: dict[int, tuple[Chat, int]] = {}  # with the number of their tokens
        for index, request in enumerate(requests):
            try:
                prompts[index] = request.chat(), self._length(model, request)
            except UserError as error:
                replies[index] = Rejected(f"{self._path}: {error}")
            except Exception as error:  # of this request: those beside it are decoded
                replies[index] = error
        if prompts:
            temperature, max_tokens = self._settings(requests[0])
            completions = self._generate(
                model,
                [chat for chat, _ in prompts.values()],
                temperature=temperature,
                max_tokens=max_tokens,
                seed=[self._seed(requests[index]) for index in prompts],
            )
            for (index, (_, length)), [completion] in zip(prompts.items(), completions, strict=True):
                finish = Finish.STOP if completion.finished else Finish.LENGTH
                usage = Usage(prompt=length, output=completion.tokens)
                replies[index] = Reply(without_thoughts(completion.text), finish, usage, self.model)
        return [replies[index] for index in range(len(requests))]

    def _length(self, model: LanguageModel, request: Request) -> int:
        """Tokens of the prompt. Raises: UserError if it cannot be asked."""
        tokens, answer = len(model.encode(request.chat())), self.max_output_tokens(request)
        limit = model.model.config.max_length
        if limit and tokens + answer > limit:
            raise UserError(
                f"a prompt of {tokens} tokens and an answer of up to {answer} exceed the {limit} that the model was "
                "made for; lower config.generation.max_output_tokens, or choose another model"
            )
        return tokens

    def _seed(self, request: Request) -> int:
        # A reply of no use would come again with the same seed.
        return int(files.fingerprint([request.key(self.model), request.attempt], length=8), 16)

    def _generate(self, model: LanguageModel, prompts: Sequence[Chat], **settings: Any) -> list[list[Completion]]:
        try:
            return model.generate(prompts, **settings)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(
                f"{self._path}: {len(prompts)} answers of up to {settings['max_tokens']} tokens do not fit into the "
                "memory at once; lower config.calls.in_flight or config.generation.max_output_tokens"
            ) from None

    @functools.cached_property
    def _loaded(self) -> LanguageModel:
        of_hub = is_hub_id(self._path)
        model = load(self._path, revision=_commit(self._path) if of_hub else None)
        if model.tokenizer is None or model.template is None:
            missing = "tokenizer" if model.tokenizer is None else "chat template"
            raise UserError(f"{self._path}: has no {missing}, so it cannot be asked; choose another model")
        template = model.template
        if isinstance(template, JinjaTemplate) and template.thinking in ("default", "on"):
            try:
                model.template = dataclasses.replace(template, thinking="off")
            except UserError:  # it knows of no thinking
                pass
        return model
