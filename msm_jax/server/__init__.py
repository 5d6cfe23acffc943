"""OpenAI's interface over the sampler: what `python -m msm_jax.serve` runs. docs/serving.md says how it is used."""
