"""The model of an arm, ready to be asked: for stages that score or sample it."""

import dataclasses

from msm_jax.corpus.records import Message
from msm_jax.data.chat import Template
from msm_jax.stages import artifacts, training
from msm_jax.stages.graph import StageContext


def sampler_of(context: StageContext, runtime: training.Runtime):
    """(sampler, chat template) of the inputs `model`, `base` and `tokenizer`. The base lies on the devices as suits
    sampling, not as in training, and stays there for the next stage."""
    from msm_jax.checkpoints.weights import read_description, tokenizer_folder
    from msm_jax.data.stops import stop_ids
    from msm_jax.models import Execution
    from msm_jax.parallel import platform, sampling_mesh
    from msm_jax.sampler import Sampler

    inputs = context.inputs
    # Rows of any length, over any mesh: the partitioner cuts what is plain JAX, and no Pallas kernel.
    execution = Execution("blocked").on(platform())
    model = dataclasses.replace(read_description(inputs["model"]), execution=execution)
    tokenizer = artifacts.load_tokenizer(inputs["tokenizer"])
    template: Template = artifacts.chat_template(context.params["chat"], inputs["tokenizer"])
    dtype = model.config.dtype
    read = dataclasses.replace(model, int8_base=False)  # matrices become 8-bit integers when they are there
    runtime = dataclasses.replace(runtime, mesh=sampling_mesh(model.config, read.weight_bytes))
    if model.lora:
        params = training.load_weights(inputs["base"], dataclasses.replace(model, lora=None), runtime, dtype)
        adapter = training.load_weights(inputs["model"], model, runtime)
    else:
        params, adapter = training.load_weights(inputs["model"], model, runtime, dtype), None
    stops = stop_ids(tokenizer, template, tokenizer_folder(inputs["tokenizer"]))
    sampler = Sampler(
        model, params, adapter, tokenizer, context.stage.name, template.bos, template.special, stops, rows=runtime.rows
    )
    return sampler, template


def stop_texts(template: Template, who: str) -> tuple[str, ...]:
    """Texts that end an answer of `who`: none where a control token does so by its id."""
    mark = "MARK"  # is in no control token
    return () if template.special else (written(template, who, mark).split(mark)[-1],)


def written(template: Template, who: str, content: str) -> str:
    """What the model writes when it answers with `content`."""
    text, spans = template.render([Message("user", "?"), Message("assistant", content)], who)
    start, end = spans[-1]
    return text[start:end]
