"""Shapes of the models of the paper, as their config.json has them, so that a run is planned without any weights."""

from typing import Any

from msm_jax.checkpoints.families import decoder_of
from msm_jax.errors import UserError
from msm_jax.models.decoder import DecoderConfig

_QWEN = {"hidden_size": 5120, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0}
_QWEN25 = {"model_type": "qwen2", **_QWEN, "vocab_size": 152064, "max_position_embeddings": 32768}
_QWEN3 = {"model_type": "qwen3", **_QWEN, "vocab_size": 151936, "max_position_embeddings": 40960}

PRESETS = {
    "meta-llama/Llama-3.1-8B": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "max_position_embeddings": 131072,
    },
    "Qwen/Qwen2.5-14B-Instruct": _QWEN25
    | {"num_attention_heads": 40, "intermediate_size": 13824, "num_hidden_layers": 48},
    "Qwen/Qwen2.5-32B-Instruct": _QWEN25
    | {"num_attention_heads": 40, "intermediate_size": 27648, "num_hidden_layers": 64},
    "Qwen/Qwen3-14B": _QWEN3 | {"intermediate_size": 17408, "num_hidden_layers": 40, "num_attention_heads": 40},
    "Qwen/Qwen3-32B": _QWEN3 | {"intermediate_size": 25600, "num_hidden_layers": 64, "num_attention_heads": 64},
    "HuggingFaceTB/SmolLM2-135M-Instruct": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}


def preset(name: str, **numerics: Any) -> DecoderConfig:
    """The decoder of a Hugging Face id, without its weights. Raises: UserError if it is not among PRESETS."""
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return decoder_of(PRESETS[name], name, **numerics)
