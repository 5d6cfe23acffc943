"""SmolLM2-135M-Instruct as a GGUF file -> a Hugging Face folder, by transformers. Run by launch/smollm2.sh:
python -m launch.smollm2 FILE FOLDER
"""

import json
import pathlib
import sys

import ml_dtypes
import torch
import transformers

from msm_jax.checkpoints.huggingface import base_table, check_tensors
from msm_jax.checkpoints.presets import PRESETS, preset
from msm_jax.checkpoints.tensor_files import TensorFiles, write_tensors
from msm_jax.models import Model

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
_LAYER = (
    *("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)


def convert(file: pathlib.Path, folder: pathlib.Path) -> None:
    """Weights in bfloat16, always in the same order: runs tell by the first bytes whether they have the same model."""
    decoder, source = preset(NAME), {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    weights = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).state_dict()
    layers = [f"layers.{layer}.{part}" for layer in range(decoder.num_layers) for part in _LAYER]
    names = [f"model.{part}.weight" for part in ("embed_tokens", *layers, "norm")]

    def read(name: str):
        return weights[name].bfloat16().view(torch.int16).numpy().view(ml_dtypes.bfloat16)

    write_tensors(
        folder, [(name, weights[name].shape, ml_dtypes.bfloat16, lambda name=name: read(name)) for name in names]
    )
    check_tensors(TensorFiles(folder), base_table(decoder), Model(decoder).shapes)

    described = json.loads(tokenizer.backend_tokenizer.to_str())
    # transformers does not read that this tokenizer, "smollm", splits off each digit.
    splits = [{"type": "Digits", "individual_digits": True}, described["pre_tokenizer"]]
    described |= {"pre_tokenizer": {"type": "Sequence", "pretokenizers": splits}, "post_processor": None}
    described["model"] |= {"continuing_subword_prefix": None, "end_of_word_suffix": None}
    ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")}
    texts = {f"{token}_token": getattr(tokenizer, f"{token}_token") for token in ("bos", "eos", "pad", "unk")}
    for name, value in {
        "tokenizer.json": described,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",  # it takes tokenizer.json as it is
            "clean_up_tokenization_spaces": False,
            "model_max_length": decoder.max_length,
            **texts,
            "chat_template": tokenizer.chat_template,
        },
        "generation_config.json": ids,
        "config.json": {"architectures": ["LlamaForCausalLM"], **PRESETS[NAME], **ids, "torch_dtype": "bfloat16"},
    }.items():
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    convert(*map(pathlib.Path, sys.argv[1:]))
