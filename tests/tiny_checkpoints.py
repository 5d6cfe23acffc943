"""Small random checkpoints of the three families, with tokenizer and chat template, as Hugging Face has them."""

import jax
import numpy as np
import tokenizers
import torch
import transformers
from safetensors.numpy import save_file

from msm_jax.checkpoints import weights
from msm_jax.checkpoints.orbax import save_params
from msm_jax.models import LoraConfig, Model
from tests.data.checkpoints import write_llama, write_qwen

SIZES = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 8192,
}  # fmt: skip
LLAMA31_ROPE = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}  # fmt: skip


def write_checkpoint(folder, family, dtype="bfloat16", seed=0):
    """`family`: llama, qwen2 or qwen3. Returns `folder`."""
    write, name, features = {
        "llama": (lambda: write_llama(folder), "Llama", {"rope_parameters": LLAMA31_ROPE}),
        "qwen2": (lambda: write_qwen(folder, "qwen2"), "Qwen2", {}),
        "qwen3": (lambda: write_qwen(folder, "qwen3"), "Qwen3", {"head_dim": 16}),
    }[family]
    write()
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**SIZES | features)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():  # wide enough that logits are far from flat
        for parameter_name, parameter in model.named_parameters():
            if "norm" not in parameter_name:
                parameter.normal_(std=0.2)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def write_adapter(folder, imported, scale=0.2):
    """As a training stage leaves it, over the imported base."""
    base = weights.open_model(imported)
    model = Model(base.decoder, LoraConfig(4, 8.0, ("q", "v", "gate", "down")))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.numpy.asarray(rng.standard_normal(x.shape) * scale, "float32"), model.lora_shapes
    )
    folder.mkdir()
    save_params(folder / "final", params)
    weights.write_description(folder, model, base=str(imported), tokenizer=str(imported))
    return folder


def write_chain(folder, follow, spare=2):
    """Weights and config.json for the tokenizer in `folder`: of a Llama that says `follow[token]` after each token (0
    where it names none), with some rows of the embedding to spare."""
    size = len(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()) + spare
    width = size + size % 2
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=width, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
        architectures=["LlamaForCausalLM"], dtype="float32",
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in transformers.LlamaForCausalLM(config).state_dict().items()}
    arrays = {name: (np.ones if "norm" in name else np.zeros)(shape, np.float32) for name, shape in shapes.items()}
    arrays["model.embed_tokens.weight"] = np.eye(size, width, dtype=np.float32)
    for token in range(size):
        arrays["lm_head.weight"][follow.get(token, 0), token] = 1
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    return folder
