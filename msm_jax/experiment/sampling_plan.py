"""The part of `--mode=plan` that tells what the evaluations of an experiment draw, and what that takes."""

import dataclasses
import math
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from msm_jax.checkpoints import weights
from msm_jax.experiment.build import Experiment
from msm_jax.models import DecoderConfig, Execution, LoraConfig, Model
from msm_jax.parallel import make_mesh, sampling_mesh
from msm_jax.parallel.chips import chip_of
from msm_jax.parallel.plan import GIB
from msm_jax.sampler.plan import SamplingPlan, Workload, plan_sampling
from msm_jax.stages.graph import Kind

_DRAWING = (Kind.SAMPLE, Kind.SCORE)


def plan_evaluations(
    config: ConfigDict, experiment: Experiment, decoder: DecoderConfig, topology: str, mesh: Mesh, price: float | None
) -> list[dict[str, Any]]:
    """An entry of plan.json for each evaluation that draws answers: what one model takes, and all of them. The devices
    are those of `mesh`, laid out as for sampling."""
    lora, adapters = adapters_of(experiment)
    model = Model(decoder, lora, Execution(stacked=True))
    devices = list(mesh.devices.flat)
    mesh = make_mesh(sampling_mesh(decoder, model.weight_bytes, devices), devices)
    params = weights.abstract_params(dataclasses.replace(model, lora=None), mesh, decoder.dtype)
    beside = f", with {adapters} adapters of rank {lora.rank}" if adapters > 1 else ""
    entries = []
    for evaluation in experiment.evaluations:
        if (drawn := evaluation.drawn) is None:
            continue
        section = getattr(evaluation, "section", evaluation.name)  # answers that several evaluations share are of one
        scored = [s for s in experiment.stages if s.kind in _DRAWING and s.evaluation == section]
        work = Workload(evaluation.name, **drawn)
        found = plan_sampling(work, model, params, adapters, mesh, rows=config.sampler.rows)
        hours = len(scored) * found.seconds / 3600
        entries.append(
            {
                "topology": topology,
                **dataclasses.asdict(found),
                "fits": found.fits,
                "limit": chip_of(mesh.devices.flat[0].device_kind).memory,
                "tokens_per_second": None if math.isnan(found.step_seconds) else found.tokens_per_second,
                "adapters": adapters,
                "models": len(scored),
                "hours": hours if found.fits else None,
                "usd": hours * mesh.size * price if found.fits and price is not None else None,
                "told": told(found, beside, len(scored), mesh, price),
            }
        )
    return entries


def adapters_of(experiment: Experiment) -> tuple[LoraConfig | None, int]:
    """The shape of those that a sampler holds, and their number. One that is trained is sampled alone. Those that exist
    are held together; a plan has not read them, and takes them to be of our default rank."""
    existing = sum(stage.kind is Kind.ADAPTER for stage in experiment.stages)
    if existing:
        return LoraConfig(), existing
    trained = next((stage.params["lora"] for stage in experiment.stages if stage.kind is Kind.TRAIN), None)
    return (LoraConfig(**trained), 1) if trained else (None, 0)


def told(plan: SamplingPlan, beside: str, models: int, mesh: Mesh, price: float | None) -> str:
    """What `--mode=plan` prints of it; `beside`: what is held beside the base."""
    work, shape, limit = plan.workload, plan.shape, chip_of(mesh.devices.flat[0].device_kind).memory
    lines = [
        f"  {work.name}: {work.prompts:,} prompts of about {work.prompt_tokens:,} tokens x {work.samples}, answers of "
        f"about {work.answer_tokens:,} tokens; {shape.batch} rows at once, {shape.rows} to a prompt"
    ]
    if not plan.fits:
        lacking = max(plan.prefill.lacking, plan.decode.lacking) / GIB
        fewer = max(mesh.size, shape.batch // 4)
        tip = f"--config.sampler.rows={fewer}; or " if fewer < shape.batch else ""
        return "\n".join(
            [*lines, f"    does not fit, by {lacking:.2f} GiB of {limit / GIB:.2f} a chip; try {tip}a larger slice"]
        )
    read, hours = plan.decode.memory_bytes / plan.steps, models * plan.seconds / 3600
    peak = max(plan.prefill.peak, plan.decode.peak) / GIB
    cost = "no price in msm_jax/experiment/prices.toml" if price is None else f"{hours * mesh.size * price:,.1f} USD"
    lines += [
        f"    memory       peak {peak:.2f} of {limit / GIB:.2f} GiB a chip{beside}: fits",
        f"    a step       a chip reads {read / 1e9:.2f} GB (theory {plan.step_bytes / 1e9:.2f}) and sends "
        f"{sum(plan.decode.sent_bytes.values()) / plan.steps / 1e9:.2f}",
        f"    roofline     {plan.tokens_per_second:,.0f} tokens/s, {shape.batch / plan.apart_seconds:,.0f} if each row "
        f"read a copy of its prompt; {models} models: about {hours:.2g} h of that, {cost}",
    ]
    return "\n".join(lines)
