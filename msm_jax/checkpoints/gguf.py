"""A GGUF file (llama.cpp) of the Llama architecture -> a Hugging Face folder.

Run: python -m msm_jax.convert gguf --gguf=FILE --out=FOLDER

Layout of the file: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; names and order of the tensors:
convert_hf_to_gguf.py of llama.cpp.
"""

import json
import os
import re
from typing import Any

import ml_dtypes
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from msm_jax.checkpoints.tensor_files import NewTensor, write_tensors
from msm_jax.errors import UserError
from msm_jax.storage.folders import Folder

_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
_CONTROL, _USER_DEFINED = 3, 4  # token types: read as one token wherever they stand in the text; special or not
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(gguf_path: str | os.PathLike, folder: str | os.PathLike, dtype: str = "bfloat16") -> None:
    """Writes config, tokenizer (byte-level BPE), chat template and dequantised weights in `dtype` into `folder`.

    One tensor is in memory at a time. config.json comes last: where it is, the folder is whole.

    Raises: UserError if the file is missing or damaged, or of an architecture, tokenizer or kind of numbers that is not
        known here, or if the package `gguf` is not installed.
    """
    if dtype not in _DTYPES:
        raise UserError(f"dtype {dtype!r}: choose {' or '.join(_DTYPES)}")
    source = _Source(gguf_path)
    config = _config(source, dtype)
    tokenizer, tokenizer_config = _tokenizer(source, config)
    tensors = _tensors(source, config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    # The end of a turn and that of a message that calls a tool, where they are not the end of a document.
    turns = {source.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom")} - {None, ids["eos_token_id"]}
    if turns:
        ids["eos_token_id"] = sorted(turns | {ids["eos_token_id"]})
    target = Folder(folder)
    target.remove("config.json")
    write_tensors(folder, tensors, label="convert")
    target.write("tokenizer.json", tokenizer.to_str().encode())
    _write_json(target, "tokenizer_config.json", tokenizer_config)
    _write_json(target, "generation_config.json", ids)
    _write_json(target, "config.json", config)


class _Source:
    """Metadata and tensors of a GGUF file."""

    def __init__(self, path: str | os.PathLike):
        try:
            import gguf
        except ImportError:
            raise UserError(f"{path}: reading GGUF files needs pip install -e '.[gguf]'") from None
        self.path = path
        self._dequantize = gguf.dequantize
        try:
            self._reader = gguf.GGUFReader(path)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}") from None
        except (ValueError, IndexError, KeyError, OverflowError):
            # What the reader meets where the file ends too early or is something else.
            raise UserError(f"{path}: not a GGUF file, or cut off; copy or download it again") from None
        self.tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def get(self, key: str, default: Any = None) -> Any:
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise UserError(f"{self.path}: no {key} in its metadata; convert the model to GGUF again")
        return value

    def refuse(self, what: str, known: str) -> UserError:
        return UserError(f"{self.path}: {what}; only {known} can be converted")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def read(self, name: str) -> np.ndarray:
        """float32, in the order that the file has."""
        tensor = self.tensors[name]
        try:
            return self._dequantize(tensor.data, tensor.tensor_type).reshape(self.shape(name))
        except NotImplementedError:
            raise UserError(
                f"{self.path}: {name} is stored as {tensor.tensor_type.name}, which cannot be read"
            ) from None


def _config(source: _Source, dtype: str) -> dict[str, Any]:
    architecture = source.need("general.architecture")
    if architecture != "llama":
        raise source.refuse(f"architecture {architecture}", "llama")
    width = source.need("llama.embedding_length")
    heads = source.need("llama.attention.head_count")
    head_size = source.get("llama.attention.key_length", width // heads)
    if source.get("llama.expert_count", 0):
        raise source.refuse("it has experts", "dense models")
    if source.get("llama.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in source.tensors:
        raise source.refuse("its rotary embeddings are scaled", "those without scaling")
    if source.get("llama.rope.dimension_count", head_size) != head_size:
        raise source.refuse("its rotary embeddings turn a part of each head", "those that turn all of it")
    if "token_embd.weight" not in source.tensors:
        raise UserError(f"{source.path}: no tensor token_embd.weight; download the file again")
    eos = source.need("tokenizer.ggml.eos_token_id")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": source.shape("token_embd.weight")[0],
        "hidden_size": width,
        "intermediate_size": source.need("llama.feed_forward_length"),
        "num_hidden_layers": source.need("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": source.get("llama.attention.head_count_kv", heads),
        "head_dim": head_size,
        "max_position_embeddings": source.need("llama.context_length"),
        "rope_theta": _decimal(source.get("llama.rope.freq_base", 10_000.0)),
        "rms_norm_eps": _decimal(source.need("llama.attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "bos_token_id": source.need("tokenizer.ggml.bos_token_id"),
        "eos_token_id": eos,
        "pad_token_id": source.get("tokenizer.ggml.padding_token_id", eos),
        "torch_dtype": dtype,
    }


def _decimal(value: float) -> float:
    """The number that was meant by a float32: 1e-05 where the file has 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _tensors(source: _Source, config: dict[str, Any]) -> list[NewTensor]:
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    vocab = (config["vocab_size"], width)
    block = {
        "attn_norm": (width,),
        "attn_q": (q, width),
        "attn_k": (kv, width),
        "attn_v": (kv, width),
        "attn_output": (width, q),
        "ffn_norm": (width,),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }
    shapes = {"token_embd.weight": vocab}
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"blk.{i}.{part}.weight": shape for part, shape in block.items()}
    shapes["output_norm.weight"] = (width,)
    if not config["tie_word_embeddings"]:
        shapes["output.weight"] = vocab
    if unknown := sorted(source.tensors.keys() - shapes.keys()):
        raise source.refuse(f"it has a tensor {unknown[0]}", "plain Llama models")
    for name, shape in shapes.items():
        if name not in source.tensors:
            raise UserError(f"{source.path}: no tensor {name}; download the file again")
        if source.shape(name) != shape:
            raise UserError(f"{source.path}: {name} has shape {source.shape(name)}, but its metadata say {shape}")
    dtype = _DTYPES[config["torch_dtype"]]
    return [
        NewTensor(_hf_name(name), shape, dtype, lambda name=name: _read(source, name, head).astype(dtype))
        for name, shape in shapes.items()
    ]


def _hf_name(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_BLOCK[part]}.{kind}"


def _read(source: _Source, name: str, head_size: int) -> np.ndarray:
    array = source.read(name)
    if re.fullmatch(r"blk\.\d+\.attn_[qk]\.weight", name):
        # llama.cpp turns neighbours (0, 1), (2, 3), ... of a head, Hugging Face (0, D/2), (1, D/2 + 1), ...
        out, width = array.shape
        array = array.reshape(out // head_size, head_size // 2, 2, width).swapaxes(1, 2).reshape(out, width)
    return array


def _tokenizer(source: _Source, config: dict[str, Any]) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """tokenizer.json as `tokenizers` has it, and tokenizer_config.json."""
    kind, splitter = source.need("tokenizer.ggml.model"), source.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise source.refuse(f"tokenizer {kind}", "byte-level BPE (gpt2)")
    if splitter != "smollm":
        raise source.refuse(f"pre-tokenizer {splitter}", "smollm")
    if source.get("tokenizer.ggml.add_bos_token", False) or source.get("tokenizer.ggml.add_eos_token", False):
        raise source.refuse("its tokenizer adds bos or eos by itself", "one that does not")
    tokens = source.need("tokenizer.ggml.tokens")
    types = source.need("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in source.need("tokenizer.ggml.merges")]
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens) or len(types) != len(tokens) or len(tokens) > config["vocab_size"]:
        raise UserError(f"{source.path}: tokens, their types and the embedding do not fit each other")
    try:
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges))
    except Exception as error:  # the library has no class for it
        raise UserError(f"{source.path}: unsound merges in its tokenizer ({error})") from None
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, types, strict=True):
        if token_type in (_CONTROL, _USER_DEFINED):
            special = token_type == _CONTROL
            tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False, special=special)])
    named = {"bos_token": config["bos_token_id"], "eos_token": config["eos_token_id"]}
    named |= {"pad_token": config["pad_token_id"], "unk_token": source.get("tokenizer.ggml.unknown_token_id")}
    for name, i in named.items():
        if i is not None and not 0 <= i < len(tokens):
            raise UserError(f"{source.path}: {name} is token {i}, of {len(tokens)}; convert the model to GGUF again")
    tokenizer_config = {
        # The class that takes tokenizer.json as it is.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        **{name: tokens[i] for name, i in named.items() if i is not None},
    }
    if template := source.get("tokenizer.chat_template"):
        tokenizer_config["chat_template"] = template
    return tokenizer, tokenizer_config


def _write_json(target: Folder, name: str, value: Any) -> None:
    target.write(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
