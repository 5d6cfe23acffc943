"""`msm_jax.load`: a model on disk, ready to be asked."""

import functools
import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from msm_jax.checkpoints import weights
from msm_jax.corpus.records import check_text, to_message
from msm_jax.data.chat import Template
from msm_jax.data.huggingface import read_chat_template
from msm_jax.data.jinja_template import make_template
from msm_jax.data.stops import stop_ids
from msm_jax.data.tokenizer import Tokenizer, load_tokenizer
from msm_jax.errors import UserError
from msm_jax.models import Execution, LoraConfig, Model, quantize
from msm_jax.parallel import make_mesh, platform, sampling_mesh
from msm_jax.sampler.adapters import check_adapter
from msm_jax.sampler.sampler import Completion, Sampler
from msm_jax.sampler.service import Service

PyTree = Any
Chat = Sequence[Mapping[str, str]]  # [{"role": "user", "content": "..."}, ...]


_apply = jax.jit(Model.apply, static_argnums=0)  # equal models share it


class Voice(NamedTuple):
    """How chats are written for a model, and what ends its answers."""

    template: Template | None  # None: it is asked with texts alone
    name: str = ""  # who speaks in the answers, for templates that name the speaker
    stop_ids: tuple[int, ...] = ()  # of which each ends an answer (data/stops.py)


class LanguageModel:
    """What `msm_jax.load` returns.

    Attributes:
      model: structure, without weights.
      params, lora: weights as in `Model.apply`; `lora` is None without an adapter.
      tokenizer: None if none lies beside the weights.
      template: the chat template: that of training, for a model that was trained here; None if there is none.
      name: who speaks in the answers, for templates that name the speaker.
      stop_ids: the ids of which each ends an answer (data/stops.py).
      adapters: those that can be chosen for each request, by name: (their shape, their weights).
      voices: of those adapters that were trained with a chat template of their own.
    """

    def __init__(
        self,
        model: Model,
        params: PyTree,
        lora: PyTree | None,
        tokenizer: Tokenizer | None,
        template: Template | None,
        name: str = "",
        stop_ids: Sequence[int] = (),
        adapters: Mapping[str, tuple[LoraConfig, PyTree]] | None = None,
        rows: int = 64,
        voices: Mapping[str, Voice] | None = None,
        int8_prompts: bool = False,
    ):
        self.adapters, self.voices = dict(adapters or {}), dict(voices or {})
        self._sizes = {"rows": rows, "int8_prompts": int8_prompts}
        self.name, self.stop_ids = name, tuple(stop_ids)
        self.model, self.params, self.lora = model, params, lora
        self.tokenizer, self.template = tokenizer, template

    def logits(self, tokens: Any) -> jax.Array:
        """Logits float32[B, T, V] of rows of one text each, int32[B, T]; at t, those of token t + 1."""
        try:
            rows = np.asarray(tokens)
        except ValueError:
            raise UserError("logits: the rows have different lengths; ask for them one after the other") from None
        if rows.ndim != 2 or not rows.size or not np.issubdtype(rows.dtype, np.integer):
            raise UserError(f"logits: tokens are {rows.dtype}{list(rows.shape)}; give rows of ids, int[B, T]")
        vocabulary = self.model.config.vocab_size
        if rows.min() < 0 or rows.max() >= vocabulary:
            raise UserError(f"logits: an id lies outside of the model's vocabulary of {vocabulary}")
        tokens_BT = jnp.asarray(rows, jnp.int32)
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
        return _apply(self.model, self.params, self.lora, tokens_BT, jnp.ones_like(tokens_BT), positions_BT)

    def generate(
        self,
        prompts: Sequence[str | Chat | Sequence[int]],
        n: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 256,
        seed: int | Sequence[int] | None = 0,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        adapter: str | None = None,
        **settings: Any,
    ) -> list[list[Completion]]:
        """`n` samples of each prompt: `Sampler.generate` says what the arguments do.

        A prompt is a text to go on with, a chat (a list of {"role", "content"}) to answer, or ids. In a text, control
        tokens are read as such, and the tokenizer's bos is put before it, as transformers does; ids are taken as they
        are. `adapter`: one of `adapters`; None: the model as it was loaded.

        Raises: UserError for messages that a corpus could not hold (such as with a field of their own), for chats where
            the checkpoint has no chat template, without a tokenizer, and for an adapter that was not loaded.
        """
        if not isinstance(prompts, Sequence) or isinstance(prompts, str) or _is_chat(prompts):
            raise UserError("generate: prompts must be a list of texts or of chats")
        for text in stop if isinstance(stop, Sequence) else ():
            check_text(str(text), "generate: stop")
        place = self.place_of(adapter)
        ids = [self.encode(prompt, f"generate: prompt {i}", adapter) for i, prompt in enumerate(prompts, start=1)]
        if adapter in self.voices and not settings.get("ignore_end"):
            settings["stop_ids"] = (*settings.get("stop_ids", ()), *self.voices[adapter].stop_ids)
        return self.sampler.generate(ids, n, temperature, max_tokens, seed, stop, top_p, logprobs, place, **settings)

    def encode(
        self, prompt: str | Chat | Sequence[int], where: str = "generate: prompt", adapter: str | None = None
    ) -> list[int]:
        """The ids that `generate` goes on from. Raises: UserError, as it does; `where` begins its message."""
        sampler = self.sampler
        if isinstance(prompt, np.ndarray):
            prompt = prompt.tolist()
        if isinstance(prompt, Sequence) and not isinstance(prompt, str) and not prompt:
            raise UserError(f"{where}: is empty; give a text, a chat, or ids")
        if isinstance(prompt, Sequence) and not isinstance(prompt, str) and isinstance(prompt[0], numbers.Integral):
            return [int(i) for i in prompt]
        if isinstance(prompt, str):
            check_text(prompt, where)
            return sampler.encode(prompt)
        voice = self.voice_of(adapter)
        text = self._rendered(prompt, where, voice)
        start = [self.tokenizer.bos_id] if voice.template.bos and self.tokenizer.bos_id is not None else []
        return [*start, *self.tokenizer.encode(text, special=voice.template.special)]

    def place_of(self, adapter: str | None) -> int:
        """The adapter's number in the engine. Raises: UserError if it was not loaded."""
        if adapter is None:
            return int(self.lora is not None)
        if adapter not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            raise UserError(f"generate: adapter {adapter!r} was not loaded; there are: {known}")
        return 1 + int(self.lora is not None) + list(self.adapters).index(adapter)

    def voice_of(self, adapter: str | None) -> Voice:
        """How `adapter` is asked; None: the model as it was loaded."""
        return self.voices.get(adapter) or Voice(self.template, self.name, self.stop_ids)

    @functools.cached_property
    def sampler(self) -> Sampler:
        """Raises: UserError if there is no tokenizer."""
        if self.tokenizer is None:
            raise UserError("generate: no tokenizer lies beside these weights")
        return Sampler(
            self.model, self.params, self.lora, self.tokenizer, "generate", special=True, stop_ids=self.stop_ids,
            adapters=list(self.adapters.values()), **self._sizes,
        )  # fmt: skip

    @functools.cached_property
    def service(self) -> Service:
        """The engine in a thread, for those who ask one after the other; close it when done."""
        return Service(self.sampler.engine, self.tokenizer)

    def _rendered(self, chat: Chat, where: str, voice: Voice) -> str:
        if not isinstance(chat, Sequence) or not chat or not all(isinstance(message, Mapping) for message in chat):
            raise UserError(f"generate: a chat is a list of {{'role', 'content'}}, not {chat!r}")
        if voice.template is None:
            raise UserError(
                "generate: this checkpoint has no chat template; give texts, or load it with chat_template="
            )
        messages = [to_message(message, f"{where}: message {number}") for number, message in enumerate(chat, start=1)]
        return voice.template.render(messages, voice.name, generation_prompt=True).text


def load(
    path: str | os.PathLike,
    adapter: str | os.PathLike | Mapping[str, str | os.PathLike] | None = None,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    mesh: Mapping[str, int] | None = None,
    chat_template: str = "",
    thinking: str | None = None,
    rows: int = 64,
    int8: bool = False,
    int8_prompts: bool = False,
) -> LanguageModel:
    """Loads a Hugging Face folder or id, or a folder of ours (a training stage, or what `msm_jax.convert import` made).

    Args:
      path: a folder, a URL such as gs://..., or a Hugging Face id. Where it holds an adapter, its base is loaded too.
      adapter: a folder or id (also as ORG/NAME@REVISION) of a LoRA adapter, of ours or of `peft`. Or several, by the
        names by which `generate` is asked for them; without a name it then answers as the base.
      revision: of the Hugging Face id `path`.
      dtype: of the matrices and their products; default bfloat16, and float32 on CPU.
      mesh: sizes of the axes data, fsdp and tensor; default: all devices (`parallel.sampling_mesh`).
      chat_template, thinking: see `make_template`; default: as in training, else as the checkpoint has it. A
        chat_template that is named thinks as it does by itself.
      rows: answers that are drawn at once, at most.
      int8: whether the matrices of the base are 8-bit integers: half the memory of bfloat16, and a little noise
        (`models.linear.quantize`). Adapters, embedding and head keep their type.
      int8_prompts: whether keys and values of prompts are 8-bit integers too, with a scale for each token's head.

    Raises: UserError if a part is missing, damaged, or of another model.
    """
    dtype = dtype or ("float32" if platform() == "cpu" else "bfloat16")
    named, adapter = (adapter, None) if isinstance(adapter, Mapping) else ({}, adapter)
    base = weights.open_model(path, revision, dtype=dtype)
    if base.lora is not None:
        if base.base is None:
            raise UserError(f"{path}: an adapter whose base is not told; load the base, and this as its adapter")
        if adapter is not None or named:
            raise UserError(f"{path}: is an adapter itself; load its base with one adapter")
        adapter = base.folder
        base = weights.open_base(base.base, os.fspath(path), base.revision, dtype=dtype)
    if adapter is not None:
        adapter = weights.open_adapter(adapter, base)
    # Weights are read in the type of the products, and only then become 8-bit integers.
    placed = make_mesh(mesh or sampling_mesh(base.decoder, Model(base.decoder).weight_bytes))
    tokenizer, template, name, stops = None, None, "", ()
    texts = (adapter or base).tokenizer
    if texts:
        folder = weights.local_tokenizer(texts)
        tokenizer = load_tokenizer(folder, base.decoder.vocab_size)
        if tokenizer.vocab_size > base.decoder.vocab_size:
            raise UserError(
                f"{texts}: the tokenizer has {tokenizer.vocab_size} ids, and the embedding only "
                f"{base.decoder.vocab_size} rows; they are of two models"
            )
        template, name, stops = voice = read_voice(base, adapter, folder, tokenizer, chat_template, thinking)
    params = weights.load(base, placed, dtype)
    params = quantize(params) if int8 else params
    lora = weights.load(adapter, placed) if adapter else None
    execution = Execution("blocked").on(platform())
    model = Model(base.decoder, adapter.lora if adapter else None, execution, int8)
    others, voices = {}, {}
    for label, where in named.items():
        stored = weights.open_adapter(where, base)
        if tokenizer is not None:
            own = read_voice(base, stored, folder, tokenizer, chat_template, thinking)
            voices |= {label: own} if own != voice else {}
        others[label] = stored.lora, weights.load(stored, placed)
        check_adapter(*others[label], model, label)
    return LanguageModel(model, params, lora, tokenizer, template, name, stops, others, rows, voices, int8_prompts)


def read_voice(
    base: weights.Stored,
    adapter: weights.Stored | None,
    folder: str | os.PathLike,
    tokenizer: Tokenizer,
    chat_template: str,
    thinking: str | None,
) -> Voice:
    """Of `base`, with `adapter` over it: an adapter that was trained with a template is asked with the same one.
    `folder` holds the tokenizer's files. Raises: UserError for a `thinking` that no template knows of."""
    chat = dict((adapter and adapter.chat) or base.chat or {})
    name = chat.pop("name", "")
    if chat_template or (not chat and read_chat_template(folder)):
        chat = {"template": chat_template, "thinking": "default"}
    if thinking is not None:
        if "template" not in chat:
            raise UserError(f"thinking={thinking!r}: this checkpoint has no chat template that knows of thinking")
        chat["thinking"] = thinking
    template = make_template(chat, folder, for_training=False) if chat else None
    beside = [weights.beside(stored) for stored in (base, adapter) if stored]
    return Voice(template, name, stop_ids(tokenizer, template, folder, *filter(None, beside)))


def _is_chat(prompts: Sequence[Any]) -> bool:
    return bool(prompts) and isinstance(prompts[0], Mapping)
