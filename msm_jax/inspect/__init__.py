"""The model provider of Inspect (https://inspect.aisi.org.uk): `inspect eval TASK --model msm_jax/PATH`.

Inspect finds this module by its entry point. Nothing else here is imported until such a model is asked for.
"""

from inspect_ai.model import modelapi


@modelapi(name="msm_jax")
def msm_jax():
    from msm_jax.inspect.provider import Provider

    return Provider
