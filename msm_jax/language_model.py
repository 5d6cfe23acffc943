"""`msm_jax.load`: a model on disk, ready to be asked."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msm_jax import weights
from msm_jax.corpus.records import Message
from msm_jax.data.chat import Template
from msm_jax.data.huggingface import read_chat_template
from msm_jax.data.jinja_template import load_chat_template
from msm_jax.data.tokenizer import Tokenizer, load_tokenizer
from msm_jax.errors import UserError
from msm_jax.models import Model
from msm_jax.parallel import make_mesh
from msm_jax.sampler import Completion, Sampler

PyTree = Any
Chat = Sequence[Mapping[str, str]]  # [{"role": "user", "content": "..."}, ...]


class LanguageModel:
    """What `msm_jax.load` returns.

    Attributes:
      model: structure, without weights.
      params, lora: weights as in `Model.apply`; `lora` is None without an adapter.
      tokenizer: None if none lies beside the weights.
      template: the chat template; None if there is none.
    """

    def __init__(
        self,
        model: Model,
        params: PyTree,
        lora: PyTree | None,
        tokenizer: Tokenizer | None,
        template: Template | None,
    ):
        self.model, self.params, self.lora = model, params, lora
        self.tokenizer, self.template = tokenizer, template
        self._apply = jax.jit(model.apply)

    def logits(self, tokens: Any) -> jax.Array:
        """Logits float32[B, T, V] of rows of one text each, int32[B, T]; at t, those of token t + 1."""
        tokens_BT = jnp.asarray(tokens, jnp.int32)
        if tokens_BT.ndim != 2 or not tokens_BT.size:
            raise UserError(f"logits: tokens have shape {tokens_BT.shape}; give rows of ids, [B, T]")
        rows, vocabulary = np.asarray(tokens), self.model.config.vocab_size
        if rows.min() < 0 or rows.max() >= vocabulary:
            raise UserError(f"logits: an id lies outside of the model's vocabulary of {vocabulary}")
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
        return self._apply(self.params, self.lora, tokens_BT, jnp.ones_like(tokens_BT), positions_BT)

    def generate(
        self,
        prompts: Sequence[str | Chat],
        n: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 256,
        seed: int = 0,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
    ) -> list[list[Completion]]:
        """`n` samples of each prompt: `Sampler.generate` says what the arguments do.

        A prompt is a text to go on with, or a chat (a list of {"role", "content"}) to answer. In a text, control tokens
        are read as such, and the tokenizer's bos is put before it, as transformers does.

        Raises: UserError for texts and chats at once, for chats where the checkpoint has no chat template, and without
            a tokenizer.
        """
        if self.tokenizer is None:
            raise UserError("generate: no tokenizer lies beside these weights")
        if isinstance(prompts, str):
            raise UserError("generate: prompts is one text; give a list of prompts")
        chats = {not isinstance(prompt, str) for prompt in prompts}
        if len(chats) > 1:
            raise UserError("generate: some prompts are texts and some are chats; ask for them one after the other")
        bos = special = True
        if chats == {True}:
            prompts = [self._rendered(prompt) for prompt in prompts]
            bos, special = self.template.bos, self.template.special
        sampler = Sampler(self.model, self.params, self.lora, self.tokenizer, "generate", bos, special)
        return sampler.generate(prompts, n, temperature, max_tokens, seed, stop, top_p, logprobs)

    def _rendered(self, chat: Chat) -> str:
        if self.template is None:
            raise UserError("generate: this checkpoint has no chat template; give texts")
        messages = [Message(message["role"], message["content"]) for message in chat]
        return self.template.render(messages, generation_prompt=True).text


def load(
    path: str | os.PathLike,
    adapter: str | os.PathLike | None = None,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    mesh: Mapping[str, int] | None = None,
    chat_template: str = "",
    thinking: str = "default",
) -> LanguageModel:
    """Loads a Hugging Face folder or id, or a folder of ours (a training stage, or what `msm_jax.convert import` made).

    Args:
      path: a folder, a URL such as gs://..., or a Hugging Face id. Where it holds an adapter, its base is loaded too.
      adapter: a folder or id of a LoRA adapter, of ours or of `peft`.
      revision: of the Hugging Face id `path`.
      dtype: of the matrices and their products; default bfloat16, and float32 on CPU.
      mesh: sizes of the axes data, fsdp and tensor; default: all devices, one copy of the weights between them.
      chat_template, thinking: see `load_chat_template`.

    Raises: UserError if a part is missing, damaged, or of another model.
    """
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    base, extra = weights.open_model(path, revision, dtype=dtype), None
    if base.lora is not None:
        if base.base is None:
            raise UserError(f"{path}: an adapter whose base is not told; load the base, and this as its adapter")
        if adapter is not None:
            raise UserError(f"{path}: is an adapter itself; load its base with one adapter")
        base, extra = weights.open_model(base.base, dtype=dtype), base
    if adapter is not None:
        extra = weights.open_adapter(adapter, base)
    return load_stored(base, extra, dtype, mesh, chat_template, thinking)


def load_stored(
    base: weights.Stored,
    adapter: weights.Stored | None,
    dtype: str,
    mesh: Mapping[str, int] | None = None,
    chat_template: str = "",
    thinking: str = "default",
) -> LanguageModel:
    """`load` of what was opened before; `base` with numerics of `dtype`."""
    placed = make_mesh(mesh or _one_copy(base.decoder.num_kv_heads))
    params = weights.load(base, placed, dtype)
    lora = weights.load(adapter, placed) if adapter else None
    tokenizer = template = None
    if base.tokenizer:
        folder = weights.local_tokenizer(base.tokenizer)
        tokenizer = load_tokenizer(folder)
        if chat_template or read_chat_template(folder):
            template = load_chat_template(folder, chat_template, thinking)
    return LanguageModel(Model(base.decoder, adapter.lora if adapter else None), params, lora, tokenizer, template)


def _one_copy(num_kv_heads: int) -> dict[str, int]:
    devices = len(jax.devices())
    tensor = math.gcd(num_kv_heads, devices)
    return {"data": 1, "fsdp": devices // tensor, "tensor": tensor}
