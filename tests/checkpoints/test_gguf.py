"""GGUF files to Hugging Face folders: tiny ones written here, and SmolLM2; transformers reads the same files."""

import dataclasses
import functools
import json
import pathlib
import re
import sys

import gguf
import ml_dtypes
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from msm_jax import convert
from msm_jax.checkpoints.gguf import convert_gguf
from msm_jax.checkpoints.tensor_files import TensorFiles
from msm_jax.errors import UserError
from tests.artefacts import artefact

ROOT = pathlib.Path(__file__).parents[2]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "t he", "Ġ the", "Ġ Ġ", "ĠĠ ĠĠ", "l l", "he ll", "hell o", "Ġ t", "i n", "1 2"]
TOKENS = [
    *SPECIAL,
    "<tag>",
    *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    *(merge.replace(" ", "") for merge in MERGES),
]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
TEXTS = [
    "hello in the hall",
    "the 1 2 then\nthe  end\n\n  in\t12 it's",
    "<|im_start|>user\nhello<|im_end|>\n",
    "<tag>the<tag> <|im_end",
    "na\u00efve \u2603 \U0001f600 \u6f22\u5b57",
]


@dataclasses.dataclass
class Tiny:
    """What goes into a tiny GGUF; a test spoils some of it."""

    tied: bool = True
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32
    architecture: str = "llama"
    metadata: dict = dataclasses.field(default_factory=dict)
    tensors: dict = dataclasses.field(default_factory=dict)

    width, inner, layers, heads, kv_heads, head = 64, 96, 2, 4, 2, 16

    def original(self):
        """Hugging Face names -> float32, such that every quantisation here but Q8_0 holds them as they are."""
        shapes = {"model.embed_tokens.weight": (len(TOKENS), self.width), "model.norm.weight": (self.width,)}
        for i in range(self.layers):
            p = f"model.layers.{i}"
            shapes |= {f"{p}.{norm}.weight": (self.width,) for norm in ("input_layernorm", "post_attention_layernorm")}
            for part, size in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
                shapes[f"{p}.self_attn.{part}_proj.weight"] = (size * self.head, self.width)
            shapes[f"{p}.self_attn.o_proj.weight"] = (self.width, self.heads * self.head)
            shapes |= {f"{p}.mlp.{part}_proj.weight": (self.inner, self.width) for part in ("gate", "up")}
            shapes[f"{p}.mlp.down_proj.weight"] = (self.width, self.inner)
        if not self.tied:
            shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
        draw = np.random.default_rng(0)
        halves = {name: draw.standard_normal(shape).astype(ml_dtypes.bfloat16) for name, shape in shapes.items()}
        return {name: array.astype(np.float32) for name, array in halves.items()}

    def write(self, path):
        writer = gguf.GGUFWriter(path, self.architecture)
        metadata = {
            f"{self.architecture}.block_count": self.layers,
            f"{self.architecture}.context_length": 128,
            f"{self.architecture}.embedding_length": self.width,
            f"{self.architecture}.feed_forward_length": self.inner,
            f"{self.architecture}.attention.head_count": self.heads,
            f"{self.architecture}.attention.head_count_kv": self.kv_heads,
            f"{self.architecture}.attention.layer_norm_rms_epsilon": 1e-5,
            f"{self.architecture}.rope.freq_base": 100_000.0,
            f"{self.architecture}.rope.dimension_count": self.head,
            f"{self.architecture}.vocab_size": len(TOKENS),
            "general.name": "tiny",
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": TOKENS,
            "tokenizer.ggml.token_type": [3, 3, 3, 4] + [1] * (len(TOKENS) - 4),
            "tokenizer.ggml.merges": MERGES,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.padding_token_id": 2,
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.ggml.add_space_prefix": False,
            "tokenizer.chat_template": TEMPLATE,
            **self.metadata,
        }
        adders = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
        for key, value in metadata.items():
            if value is not None:
                adders.get(type(value), writer.add_array)(key, value)
        names = gguf_names(self.layers)
        tensors = {names[name]: permuted(name, array) for name, array in self.original().items()} | self.tensors
        for name, array in tensors.items():
            if array is None:
                continue
            kind = self.kind if array.ndim > 1 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def gguf_names(layers):
    """As the converter of llama.cpp names them."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    return {name: names.get_name(name, try_suffixes=(".weight",)) for name in Tiny(tied=False).original()}


def permuted(name, array):
    """convert_hf_to_gguf.py, LlamaModel.permute."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return array
    heads = Tiny.heads if "q_proj" in name else Tiny.kv_heads
    return array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def test_all_that_ends_an_answer(tmp_path):
    metadata = {f"tokenizer.ggml.{name}_token_id": i for name, i in (("eos", 0), ("eot", 2), ("eom", 0))}
    Tiny(metadata=metadata).write(tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_weights_are_those_of_the_file(tmp_path, kind, tied):
    tiny = Tiny(tied=tied, kind=gguf.GGMLQuantizationType[kind])
    tiny.write(tmp_path / "tiny.gguf")
    for dtype in ("float32", "bfloat16"):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / dtype, dtype)
    loose = {"F16": 2e-3, "Q8_0": 0.02}.get(kind, 0)
    exact, half = TensorFiles(tmp_path / "float32"), TensorFiles(tmp_path / "bfloat16")
    original = tiny.original()
    assert exact.tensors.keys() == half.tensors.keys() == original.keys()
    for name, array in original.items():
        got = exact.read(name)
        np.testing.assert_allclose(got, array, atol=loose, rtol=0, strict=True)
        np.testing.assert_array_equal(half.read(name), got.astype(ml_dtypes.bfloat16), strict=True)
    config = json.loads((tmp_path / "bfloat16/config.json").read_text())
    assert (config["tie_word_embeddings"], config["torch_dtype"]) == (tied, "bfloat16")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_transformers_sees_the_same_model(tmp_path, tied):
    tiny = Tiny(tied=tied, kind=gguf.GGMLQuantizationType.Q8_0)
    tiny.write(tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "hf", "float32")
    load = functools.partial(transformers.AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
    theirs = load(tmp_path, gguf_file="tiny.gguf")
    ours, loading = load(tmp_path / "hf", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    tokens = torch.tensor([[1, 5, 9, 200, 31, 2]])
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=0, atol=1e-5)
    for key in ("head_dim", "num_key_value_heads", "max_position_embeddings", "vocab_size", "tie_word_embeddings"):
        assert getattr(ours.config, key) == getattr(theirs.config, key)
    assert ours.config.rms_norm_eps == 1e-5
    assert ours.config.rope_parameters["rope_theta"] == 100_000
    assert (ours.generation_config.eos_token_id, ours.generation_config.pad_token_id) == (2, 2)


def test_the_tokenizer_is_that_of_the_file(tmp_path):
    Tiny().write(tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "hf")
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    # transformers reads neither the pre-tokenizer nor the user's tokens of a GGUF.
    for text in [text for text in TEXTS if "12" not in text and "<tag>" not in text]:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    for text in TEXTS:
        assert ours.decode(ours(text)["input_ids"]) == text
    assert ours.convert_ids_to_tokens(ours("hello<tag>  12<|im_end|> the")["input_ids"]) == [
        *("hello", "<tag>", "ĠĠ", "1", "2", "<|im_end|>", "Ġthe")
    ]
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert ours.decode(ours("<|im_start|>the<tag>")["input_ids"], skip_special_tokens=True) == "the<tag>"
    chat = ours.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert chat == "<|im_start|>user\nhello<|im_end|>"


NORM = np.ones(64, np.float32)
REFUSED = {
    "architecture": (Tiny(architecture="qwen2"), "architecture qwen2; only llama can be converted"),
    "pre-tokenizer": (
        Tiny(metadata={"tokenizer.ggml.pre": "llama-bpe"}),
        "pre-tokenizer llama-bpe; only smollm can be",
    ),
    "no pre-tokenizer": (Tiny(metadata={"tokenizer.ggml.pre": None}), "pre-tokenizer default; only smollm can be"),
    "tokenizer": (
        Tiny(metadata={"tokenizer.ggml.model": "llama"}),
        "tokenizer llama; only byte-level BPE .gpt2. can be",
    ),
    "bos": (Tiny(metadata={"tokenizer.ggml.add_bos_token": True}), "adds bos or eos by itself"),
    "experts": (Tiny(metadata={"llama.expert_count": 8}), "it has experts; only dense models"),
    "scaling": (Tiny(metadata={"llama.rope.scaling.type": "yarn"}), "its rotary embeddings are scaled"),
    "llama 3": (Tiny(tensors={"rope_freqs.weight": NORM}), "its rotary embeddings are scaled"),
    "partial": (Tiny(metadata={"llama.rope.dimension_count": 8}), "turn a part of each head"),
    "bias": (Tiny(tensors={"blk.0.attn_q.bias": NORM}), "it has a tensor blk.0.attn_q.bias; only plain Llama"),
    "missing": (Tiny(tensors={"blk.1.attn_norm.weight": None}), "no tensor blk.1.attn_norm.weight; download"),
    "no embedding": (Tiny(tensors={"token_embd.weight": None}), "no tensor token_embd.weight; download"),
    "shape": (Tiny(metadata={"llama.feed_forward_length": 95}), "ffn_gate.weight has shape .96, 64., but its metadata"),
    "layers": (Tiny(metadata={"llama.block_count": 1}), "it has a tensor blk.1"),
    "no eps": (
        Tiny(metadata={"llama.attention.layer_norm_rms_epsilon": None}),
        "no llama.attention.layer_norm_rms_eps",
    ),
    "bos id": (Tiny(metadata={"tokenizer.ggml.bos_token_id": 9999}), "bos_token is token 9999, of 271"),
    "types": (Tiny(metadata={"tokenizer.ggml.token_type": [3, 3]}), "tokens, their types and the embedding do not fit"),
    "merges": (Tiny(metadata={"tokenizer.ggml.merges": ["xx yy"]}), "unsound merges in its tokenizer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_is_refused(tmp_path, case):
    tiny, wrong = REFUSED[case]
    path = tiny.write(tmp_path / "tiny.gguf")
    with pytest.raises(UserError, match=wrong) as error:
        convert_gguf(path, tmp_path / "hf")
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "hf").exists()


def test_damaged_files(tmp_path):
    whole = Tiny().write(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "tiny.gguf"
    for length in (0, 3, 4, 10, 24, 100, 1000, 5000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a GGUF file, or cut off") as error:
            convert_gguf(path, tmp_path / "hf")
        assert "\n" not in str(error.value)
    for content in (b"<!DOCTYPE html>" * 100, b"GGUF" + bytes(1000), b"GGUF\x03\0\0\0" + b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(UserError):
            convert_gguf(path, tmp_path / "hf")
    with pytest.raises(UserError, match="no.gguf: no such file"):
        convert_gguf(tmp_path / "no.gguf", tmp_path / "hf")
    with pytest.raises(UserError, match="Is a directory"):
        convert_gguf(tmp_path, tmp_path / "hf")
    with pytest.raises(UserError, match="dtype 'int8': choose bfloat16 or float32"):
        convert_gguf(path, tmp_path / "hf", "int8")
    assert not (tmp_path / "hf").exists()


def test_numbers_that_cannot_be_read(tmp_path, monkeypatch):
    path = Tiny(kind=gguf.GGMLQuantizationType.Q8_0).write(tmp_path / "tiny.gguf")
    monkeypatch.delitem(gguf.quants._type_traits, gguf.GGMLQuantizationType.Q8_0)
    with pytest.raises(UserError, match="token_embd.weight is stored as Q8_0, which cannot be read"):
        convert_gguf(path, tmp_path / "hf")
    assert list((tmp_path / "hf").iterdir()) == []


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"tiny.gguf: reading GGUF files needs pip install -e '\.\[gguf\]'"):
        convert_gguf("tiny.gguf", tmp_path)


def test_the_command(tmp_path, capsys):
    Tiny().write(tmp_path / "tiny.gguf")
    arguments = ["gguf", f"--gguf={tmp_path / 'tiny.gguf'}", f"--out={tmp_path / 'hf'}"]
    assert convert.main(arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path}/hf: written, with weights in bfloat16\n"
    assert TensorFiles(tmp_path / "hf").tensors["model.norm.weight"].dtype == ml_dtypes.bfloat16
    assert convert.main(arguments) == 2
    assert "is not empty" in capsys.readouterr().err
    assert convert.main([arguments[0], arguments[1] + "x", f"--out={tmp_path / 'other'}"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/tiny.ggufx: no such file\n"
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_smollm2_has_the_weights_of_its_gguf(smollm2):
    path = artefact("smollm2-gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    ours, loading = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert ours.num_parameters() == 134_515_008
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name].bfloat16()), name


@pytest.mark.slow
def test_smollm2_has_the_tokenizer_of_its_gguf(smollm2):
    path = artefact("smollm2-gguf")
    ours = transformers.AutoTokenizer.from_pretrained(smollm2)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    texts = [path.read_text() for folder in ("msm_jax/models", "docs") for path in sorted((ROOT / folder).glob("*.*"))]
    for text in [*texts, *TEXTS, "In 1987, 12345 people paid 3.50."]:
        assert ours.decode(ours(text)["input_ids"]) == text
        # Of many spaces before a digit, transformers leaves the last to the digit: it reads no pre-tokenizer of a GGUF.
        text = re.sub(r"\s+(?=\d)", " ", text)
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.tokenize("x =  42") == ["x", "Ġ=", "ĠĠ", "4", "2"]


@pytest.mark.slow
def test_smollm2_answers(smollm2):
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(ids) == "The capital of France is Paris.<|im_end|>"
