"""`--mode=plan`: what an experiment takes on TPU slices, told before one is rented.

Its training steps, and the programs of the sampler (sampling_plan.py), are compiled for each slice by the TPU compiler
itself, and nothing is run. Memory is the compiler's account; times are the roofline's, so what is run takes longer.
"""

import dataclasses
import importlib.resources
import math
import pathlib
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from msm_jax.checkpoints import weights
from msm_jax.checkpoints.presets import PRESETS, preset
from msm_jax.config import checks
from msm_jax.experiment.build import Experiment
from msm_jax.experiment.evaluated import MESH, Evaluated
from msm_jax.experiment.sampling_plan import plan_evaluations
from msm_jax.models import DecoderConfig, Execution, LoraConfig, Model
from msm_jax.parallel import check_heads, make_mesh
from msm_jax.parallel.chips import chip_of, slice_devices
from msm_jax.parallel.plan import GIB, Compiled, compile_for, roofline_seconds
from msm_jax.stages import training
from msm_jax.stages.graph import Kind, Stage
from msm_jax.storage import files
from msm_jax.storage.mirror import Place
from msm_jax.train.optimizer import OptimizerConfig
from msm_jax.train.step import flops_per_token, lower_train_step

PLAN_FILE = "plan.json"
# Part of a chip's memory that a plan by estimate may fill.
_FILLED = 0.95


@dataclasses.dataclass(frozen=True)
class Step:
    """What stages share that share a compiled step."""

    model: Model
    batch_size: int
    accumulation: int
    row_length: int

    @property
    def tokens(self) -> int:
        return self.batch_size * self.row_length

    @property
    def model_flops(self) -> float:
        return self.tokens * flops_per_token(self.model, self.row_length)


def plan(config: ConfigDict, topologies: Sequence[str], workdir: str) -> None:
    """Prints the plan of each slice, and writes all of them to WORKDIR/plan.json.

    Raises: UserError for a slice that there is not, or one that the configuration cannot be cut into.
    """
    experiment = (Evaluated if config.kind == "evaluation" else Experiment)(config, planned=True)
    place = Place.open(workdir)  # first, since what follows takes minutes
    meshes = {name: make_mesh(config.get("mesh", MESH), slice_devices(name)) for name in topologies}
    decoder = _decoder(config)
    trained = [stage for stage in experiment.stages if stage.kind is Kind.TRAIN]
    print(experiment.evaluation, flush=True)
    plans, sampling = [], []
    for topology, mesh in meshes.items():
        if trained:
            checks.check_mesh(config, mesh)
            check_heads(mesh, decoder.num_kv_heads)
        steps: dict[Step, list[Stage]] = {}
        for stage in trained:
            steps.setdefault(_step(config, stage, decoder), []).append(stage)
        for step, of_step in steps.items():
            plans.append(_plan(config, topology, mesh, step, of_step))
            print(told(plans[-1]), flush=True)
        kind = topology.partition(":")[0].rpartition("*")[2]
        drawn = plan_evaluations(config, experiment, decoder, topology, mesh, _prices().get(kind))
        for entry in drawn:
            print(f"{topology}: answers that are drawn\n{entry.pop('told')}\n", flush=True)
        sampling += drawn
    path = pathlib.Path(place.local, PLAN_FILE)
    files.write_json(path, {"experiment": config.name, "plans": plans, "sampling": sampling})
    place.send(path)
    print(f"written to {place.name}/{PLAN_FILE}")


def _decoder(config: ConfigDict) -> DecoderConfig:
    """Of a model known by name without its files; of others from their config.json."""
    if config.kind == "microworld":
        return DecoderConfig(vocab_size=training.padded(config.tokenizer.vocab_size), **config.model)
    if config.base.path in PRESETS:
        return dataclasses.replace(preset(config.base.path), dtype=config.model.dtype)
    return weights.locate(config.base.path, config.base.revision or None, **config.model)[1].decoder


def _step(config: ConfigDict, stage: Stage, decoder: DecoderConfig) -> Step:
    p = stage.params
    lora = LoraConfig(**p["lora"]) if p["lora"] else None
    model = Model(decoder, lora, Execution(**config.execution).on("tpu"), p["int8_base"])
    return Step(model, p["batch_size"], p["accumulation"], config.row_length)


def _plan(config: ConfigDict, topology: str, mesh: Mesh, step: Step, trained: Sequence[Stage]) -> dict[str, Any]:
    model = step.model
    frozen = None
    if model.lora:
        frozen = weights.abstract_params(dataclasses.replace(model, lora=None), mesh, model.config.dtype)
    lowered, arguments = lower_train_step(
        model,
        OptimizerConfig(),
        mesh,
        frozen,
        batch_size=step.batch_size,
        accumulation=step.accumulation,
        row_length=step.row_length,
    )
    compiled = compile_for(lowered, mesh, arguments)
    products, links = roofline_seconds(compiled, mesh)
    kind = topology.partition(":")[0].rpartition("*")[2]
    price = _prices().get(kind)
    limit = chip_of(mesh.devices.flat[0].device_kind).memory
    result = {
        "topology": topology,
        "mesh": dict(mesh.shape),
        "hosts": len({device.process_index for device in mesh.devices.flat}),
        "step": {
            "rows": step.batch_size,
            "microbatches": step.accumulation,
            "row_length": step.row_length,
            "adapter_rank": model.lora.rank if model.lora else None,
            "base": "int8" if model.int8_base else model.config.dtype if model.lora else "float32, trained",
            **dataclasses.asdict(model.execution),
        },
        **dataclasses.asdict(compiled),
        "limit": limit,
        "fits": compiled.fits,
        "model_flops": step.model_flops,
        "compiled_over_model": compiled.flops * compiled.chips / step.model_flops if compiled.fits else None,
        "seconds": {"products": products, "links": links} if compiled.fits else None,
        "usd_per_chip_hour": price,
        "advice": _use_of_room(step, mesh.size, compiled.peak, limit)
        if compiled.fits
        else _advice(step, mesh, compiled, limit, trained),
    }
    if compiled.fits:
        seconds = max(products, links)
        result["tokens_per_second"] = step.tokens / seconds
        result["stages"] = [_stage(config, stage, step, seconds, mesh.size, price) for stage in trained]
    return result


def _stage(
    config: ConfigDict, stage: Stage, step: Step, seconds: float, chips: int, price: float | None
) -> dict[str, Any]:
    """Steps, hours and price of a stage: from its steps, or from the tokens that its corpora are expected to have."""
    steps, missing = stage.params["steps"], {}
    if steps is None:
        told_of = config.get("expected_tokens", {})
        expected = [(rows.source, told_of.get(rows.source)) for rows in stage.inputs["rows"].values()]
        if unknown := [source for source, tokens in expected if not tokens]:
            missing = {"unknown_tokens": list(dict.fromkeys(unknown))}
        else:
            steps = math.ceil(sum(tokens for _, tokens in expected) / step.tokens)
    hours = None if steps is None else steps * seconds / 3600
    return {
        "name": stage.name,
        "seed": stage.seed,
        "steps": steps,
        **missing,
        "hours": hours,
        "usd": None if hours is None or price is None else hours * chips * price,
    }


def _prices() -> Mapping[str, float]:
    return tomllib.loads(importlib.resources.files("msm_jax.experiment").joinpath("prices.toml").read_text())


def _advice(step: Step, mesh: Mesh, compiled: Compiled, limit: float, trained: Sequence[Stage]) -> list[str]:
    """What takes memory, and can be had for less, the cheapest first. Where the state alone is too much, only what
    makes it smaller."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = step.batch_size // step.accumulation // ways
    execution = step.model.execution
    room = compiled.state < limit
    sections = dict.fromkeys(stage.section for stage in trained)
    microbatches = " ".join(f"--config.{section}.accumulation={step.accumulation * rows}" for section in sections)
    return [
        advice
        for advice, helps in (
            ("--config.mesh.data=1 --config.mesh.fsdp=-1 (one copy of the weights)", mesh.shape["data"] > 1),
            (
                "--config.execution.remat=full",
                room and execution.remat != "full" and not execution.remat.startswith("offload"),
            ),
            (f"{microbatches} (one row of a chip at a time)", room and rows > 1),
            ("--config.execution.remat=offload_inputs", room and execution.remat != "offload_inputs"),
            ("--config.int8_base=true", step.model.lora is not None and not step.model.int8_base),
            (f"--config.execution.loss_chunk={execution.loss_chunk // 2}", room and execution.loss_chunk > 128),
            ("a larger slice", True),
        )
        if helps
    ]


def _use_of_room(step: Step, chips: int, peak: float, limit: float) -> list[str]:
    """The policy that keeps most for the backward pass of those that still fit, where another is chosen.

    `REMAT_POLICIES` says what each keeps.
    """
    c, remat = step.model.config, step.model.execution.remat
    heads, keys = c.num_heads * c.head_size, c.num_kv_heads * c.head_size
    kept = {"full": 0, "save_attention": heads, "save_qkv": 2 * heads + 2 * keys + c.width}
    kept["save_projections"] = kept["save_qkv"] + 2 * c.mlp_width
    if remat not in kept:
        return []
    number = jnp.dtype(c.dtype).itemsize * c.num_layers * step.tokens / step.accumulation / chips
    for policy in reversed(kept):
        more = (kept[policy] - kept[remat]) * number
        if more > 0 and peak + more < _FILLED * limit:
            return [f"--config.execution.remat={policy} (keeps {more / GIB:.1f} GiB more, computes less again)"]
    return []


def told(plan: Mapping[str, Any]) -> str:
    """What `--mode=plan` prints of an entry of plan.json."""
    step, mesh = plan["step"], " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    what = (
        f"adapter of rank {step['adapter_rank']} on a base in {step['base']}" if step["adapter_rank"] else "whole model"
    )
    hosts = "1 host" if plan["hosts"] == 1 else f"{plan['hosts']} hosts"
    lines = [
        f"{plan['topology']}: {plan['chips']} chips on {hosts}, {mesh}",
        f"  step         {step['rows']} rows of {step['row_length']:,} tokens in {step['microbatches']} microbatches; "
        f"{what}; {step['attention']} attention, remat {step['remat']}",
    ]
    limit = plan["limit"] / GIB
    if not plan["fits"]:
        lacking = plan["lacking"] / GIB
        lines.append(f"  memory       arguments {plan['state'] / GIB:.2f} GiB a chip by theory")
        lines.append(f"  does not fit, by {lacking:.2f} GiB of {limit:.2f} a chip; try {'; or '.join(plan['advice'])}")
        return "\n".join(lines) + "\n"
    sent = ", ".join(f"{kind} {size / 1e9:.1f}" for kind, size in sorted(plan["sent_bytes"].items()) if size > 5e7)
    host = f"; in the host's memory {plan['host'] / GIB:.2f}" if plan["host"] else ""
    seconds, ratio = plan["seconds"], plan["compiled_over_model"]
    lines += [
        f"  memory       arguments {plan['arguments'] / GIB:.2f} GiB a chip (theory {plan['state'] / GIB:.2f}), "
        f"temporaries {plan['temporaries'] / GIB:.2f}{host}; peak {plan['peak'] / GIB:.2f} of {limit:.2f}: fits",
        f"  work         model {_number(plan['model_flops'] / 1e15)} PFLOP a step, compiled {ratio:.2f} times as many; "
        f"a chip sends {sum(plan['sent_bytes'].values()) / 1e9:.1f} GB ({sent})",
        f"  roofline     {_number(max(seconds.values()))} s a step (products {_number(seconds['products'])}, links "
        f"{_number(seconds['links'])}), {plan['tokens_per_second']:,.0f} tokens/s",
    ]
    if plan["advice"]:
        lines.append(f"  room for     {plan['advice'][0]}")
    return "\n".join(lines + _times(plan["stages"])) + "\n"


def _number(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _times(trained: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for the seeds of a stage, and one for all; times are those of the roofline, so the least there can be."""
    seeds: dict[str, list[Mapping[str, Any]]] = {}
    for stage in trained:
        seeds.setdefault(stage["name"].removesuffix(f"-s{stage['seed']}"), []).append(stage)
    lines, known = [], [stage for stage in trained if stage["steps"] is not None]

    def least(hours: float, usd: list[float | None]) -> str:
        price = "no price in msm_jax/experiment/prices.toml" if None in usd else f"{sum(usd):,.0f} USD"
        return f"at least {_number(hours)} h, {price}"

    for name, runs in seeds.items():
        first = runs[0]
        if first["steps"] is None:
            flags = " ".join(f"--config.expected_tokens.{source}=N" for source in first["unknown_tokens"])
            what = f"an epoch; give {flags} to see hours"
        else:
            what = f"{first['steps']:,} steps, {least(first['hours'], [first['usd']])}"
        lines.append(f"  {name}: {f'{len(runs)} x ({what})' if len(runs) > 1 else what}")
    if len(known) > 1:
        lines.append(f"  all: {least(sum(stage['hours'] for stage in known), [stage['usd'] for stage in known])}")
    return lines
