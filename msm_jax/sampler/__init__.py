"""Scoring and sampling, apart from training."""

from msm_jax.sampler.sampler import Completion, Sampler, TokenLogprob

__all__ = ["Completion", "Sampler", "TokenLogprob"]
