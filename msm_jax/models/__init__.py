"""One decoder for every model: structure in `Model`, weights in plain nested dicts."""

from msm_jax.models.attention import Segments, attention
from msm_jax.models.decoder import DecoderConfig
from msm_jax.models.execution import REMAT_POLICIES, Execution
from msm_jax.models.linear import LORA_TARGETS, LoraConfig, quantize
from msm_jax.models.model import Model, count_parameters

__all__ = [
    "LORA_TARGETS",
    "REMAT_POLICIES",
    "DecoderConfig",
    "Execution",
    "LoraConfig",
    "Model",
    "Segments",
    "attention",
    "count_parameters",
    "quantize",
]
