"""What Inspect (https://inspect.aisi.org.uk) finds of ours: `inspect eval TASK --model msm_jax/PATH`, and our task.

Inspect finds this module by its entry point. Of the model nothing is imported until such a model is asked for.
"""

from inspect_ai.model import modelapi

from msm_jax.eval.agentic.task import agentic_misalignment

__all__ = ["agentic_misalignment", "msm_jax"]


@modelapi(name="msm_jax")
def msm_jax():
    from msm_jax.inspect.provider import Provider

    return Provider
