"""A checkpoint as the model that writes corpora: loaded, and asked in this process.

The sampler's engine takes calls as they come. A reply depends on its request and on the checkpoint alone, not on what
is decoded beside it (but for rounding: products of other shapes may round otherwise).
"""

import asyncio
import contextlib
import dataclasses
import functools
import pathlib
from concurrent.futures import Future, ThreadPoolExecutor
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
from msm_jax.sampler.language_model import LanguageModel, load
from msm_jax.sampler.request import Finish as Ended
from msm_jax.sampler.request import Sampling
from msm_jax.sampler.service import SamplerFailed, Service
from msm_jax.storage import files
from msm_jax.storage.folders import first_line

# Prefix of the checkpoint's name in keys of the store.
PREFIX = "own/"


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


class OwnModel:
    """The checkpoint at `path`; implements `request.Generator`. Its weights are loaded when it is first asked.

    It answers without thinking, where its chat template knows of that.

    Args:
      at_once: calls that are decoded together, at most; others wait for one to end.
      max_output_tokens: tokens of one reply, at most.

    Raises: UserError as `name_of` does.
    """

    def __init__(self, path: str, at_once: int, max_output_tokens: int = 65_536):
        self.model = name_of(path)
        self._path, self._at_once, self._max_output_tokens = path, at_once, max_output_tokens
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._loading: Future[tuple[LanguageModel, Service]] | None = None

    def max_output_tokens(self, request: Request) -> int:
        return min(request.max_tokens, self._max_output_tokens)

    async def close(self) -> None:
        """What is being decoded ends with its block, and nobody hears of it. Weights are loaded to their end."""
        self._thread.shutdown(wait=False)
        if self._loading:
            self._loading.add_done_callback(lambda loaded: loaded.exception() or loaded.result()[1].close())

    async def reply(self, request: Request) -> Reply:
        """Raises: Rejected if the model has no room for the prompt and the answer, or if the chat template cannot write
        it; UserError if the checkpoint cannot be loaded or asked, if the memory does not suffice, and if the engine
        fails; RuntimeError after `close`."""
        if self._loading is None:
            self._loading = self._thread.submit(self._load)
        # Shielded: who gives up does not take the weights from the others.
        model, service = await asyncio.shield(asyncio.wrap_future(self._loading))
        try:
            prompt = self._encode(model, request)
        except UserError as error:
            raise Rejected(f"{self._path}: {error}") from None
        asked = Sampling(self.max_output_tokens(request), request.temperature, seed=self._seed(request))
        text, tokens, ended = "", 0, None
        try:
            async with contextlib.aclosing(service.stream(prompt, asked, adapter=model.place_of(None))) as pieces:
                async for piece in pieces:
                    text, tokens, ended = text + piece.text, tokens + len(piece.tokens), piece.finish
        except RuntimeError as error:
            failure = error.__cause__ if isinstance(error, SamplerFailed) else service.failure
            if failure is None:
                raise
            raise self._failed(failure) from failure
        if finish := {Ended.STOP: Finish.STOP, Ended.LENGTH: Finish.LENGTH}.get(ended):
            return Reply(without_thoughts(text), finish, Usage(prompt=len(prompt), output=tokens), self.model)
        if ended is Ended.ERROR:
            raise UserError(f"{self._path}: the model gave no numbers for the next token; its weights are damaged")
        raise RuntimeError(f"{self._path}: was closed before it had answered")

    def _encode(self, model: LanguageModel, request: Request) -> list[int]:
        """The ids of the prompt. Raises: UserError if it cannot be asked."""
        prompt = model.encode(request.chat())
        answer, limit = self.max_output_tokens(request), model.model.config.max_length
        if limit and len(prompt) + answer > limit:
            raise UserError(
                f"a prompt of {len(prompt)} tokens and an answer of up to {answer} exceed the {limit} that the model "
                "was made for; lower config.generation.max_output_tokens, or choose another model"
            )
        return prompt

    def _seed(self, request: Request) -> int:
        # A reply of no use would come again with the same seed.
        return int(files.fingerprint([request.key(self.model), request.attempt], length=8), 16)

    def _failed(self, error: BaseException) -> UserError:
        """What to tell of an error of the engine, which all calls meet."""
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            return UserError(
                f"{self._path}: its weights and {self._at_once} answers do not fit into the memory at once; lower "
                "config.calls.in_flight or config.generation.max_output_tokens"
            )
        why = f"{type(error).__name__}: {first_line(error)}"
        return UserError(f"{self._path}: the sampler failed ({why}); run the same command again")

    def _load(self) -> tuple[LanguageModel, Service]:
        of_hub = is_hub_id(self._path)
        try:
            model = load(self._path, revision=_commit(self._path) if of_hub else None, rows=self._at_once)
            if model.tokenizer is None or model.template is None:
                missing = "tokenizer" if model.tokenizer is None else "chat template"
                raise UserError(f"{self._path}: has no {missing}, so it cannot be asked; choose another model")
            template = model.template
            if isinstance(template, JinjaTemplate) and template.thinking in ("default", "on"):
                with contextlib.suppress(UserError):  # it knows of no thinking
                    model.template = dataclasses.replace(template, thinking="off")
            return model, model.service
        except jax.errors.JaxRuntimeError as error:
            raise self._failed(error) from error
