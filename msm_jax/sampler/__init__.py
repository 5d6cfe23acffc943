"""Scoring and sampling, apart from training."""

from msm_jax.sampler.request import Finish, Sampling, TokenLogprob
from msm_jax.sampler.sampler import Completion, Sampler

__all__ = ["Completion", "Finish", "Sampler", "Sampling", "TokenLogprob"]
