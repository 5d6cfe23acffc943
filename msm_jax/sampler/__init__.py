"""Scoring and sampling, apart from training."""

from msm_jax.sampler.sampler import Completion, Sampler

__all__ = ["Completion", "Sampler"]
