"""One decoder for every model: structure in `Model`, weights in plain nested dicts."""

from msm_jax.models.attention import Segments, attention
from msm_jax.models.decoder import LORA_TARGETS, REMAT_POLICIES, Cache, DecoderConfig, LoraConfig
from msm_jax.models.model import Model, count_parameters

__all__ = [
    "LORA_TARGETS",
    "REMAT_POLICIES",
    "Cache",
    "DecoderConfig",
    "LoraConfig",
    "Model",
    "Segments",
    "attention",
    "count_parameters",
]
