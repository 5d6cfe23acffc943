"""The model of an arm, ready to be asked: for stages that score or sample it."""

import dataclasses

from msm_jax.data.chat import Template
from msm_jax.stages import artifacts, training
from msm_jax.stages.graph import StageContext


def sampler_of(context: StageContext, runtime: training.Runtime):
    """(sampler, chat template) of the inputs `model`, `base` and `tokenizer`; the base stays in memory for the next
    stage. -> tuple[Sampler, Template]."""
    from msm_jax.checkpoints.weights import read_description, tokenizer_folder
    from msm_jax.data.stops import stop_ids
    from msm_jax.models import Execution
    from msm_jax.parallel import platform
    from msm_jax.sampler import Sampler

    inputs = context.inputs
    # Rows of any length, over any mesh: the partitioner cuts what is plain JAX, and no Pallas kernel.
    execution = Execution("blocked").on(platform())
    model = dataclasses.replace(read_description(inputs["model"]), execution=execution)
    tokenizer = artifacts.load_tokenizer(inputs["tokenizer"])
    template: Template = artifacts.chat_template(context.params["chat"], inputs["tokenizer"])
    dtype = model.config.dtype
    if model.lora:
        params = training.load_weights(inputs["base"], dataclasses.replace(model, lora=None), runtime, dtype)
        adapter = training.load_weights(inputs["model"], model, runtime)
    else:
        params, adapter = training.load_weights(inputs["model"], model, runtime, dtype), None
    stops = stop_ids(tokenizer, template, tokenizer_folder(inputs["tokenizer"]))
    label = context.stage.name
    return Sampler(model, params, adapter, tokenizer, label, template.bos, template.special, stops), template
