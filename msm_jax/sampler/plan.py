"""What sampling takes on a slice that is not there: the engine's programs, compiled by the TPU compiler itself.

Memory is the compiler's account. A step takes no less than the longest of three: its products, what chips send each
other, and what each reads from its own memory. Nothing here is measured.

Shapes: B rows, S slots of a row, P prompt slots, L layers, K key heads, D head size.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from msm_jax.errors import UserError
from msm_jax.models import Model
from msm_jax.parallel.chips import chip_of
from msm_jax.parallel.plan import Compiled, compile_for, roofline_seconds
from msm_jax.parallel.sharding import param_shardings, replicated
from msm_jax.sampler import programs
from msm_jax.sampler.adapters import count_adapters
from msm_jax.sampler.shapes import bucket
from msm_jax.sampler.state import Shape

PyTree = Any
_FILLED = 0.9  # of a chip's memory, by what is held alone: programs need some beside it


@dataclasses.dataclass(frozen=True)
class Workload:
    """What an evaluation draws of one model.

    Attributes:
      prompts: different ones, of `prompt_tokens` each.
      samples: of each prompt.
      answer_tokens: that one has in the mean; `max_tokens`: at most.
    """

    name: str
    prompts: int
    samples: int
    prompt_tokens: int
    answer_tokens: int
    max_tokens: int


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
    """Of one workload on one slice. Memory is of a chip, in bytes.

    Attributes:
      shape: that the engine holds.
      prefill: one call, which reads `chunk` tokens of a prompt.
      decode: a block of `steps` steps.
      step_bytes: that a chip reads in a step, by theory: weights without the embedding, adapters, prompts, and slots
        of rows.
      step_seconds: the roofline; `apart_seconds`: the same if each row read a copy of its prompt.
      seconds: of the whole workload, prompts read and answers drawn with all rows at work.
    """

    workload: Workload
    shape: Shape
    chunk: int
    steps: int
    prefill: Compiled
    decode: Compiled
    step_bytes: float
    step_seconds: float
    apart_seconds: float
    seconds: float

    @property
    def fits(self) -> bool:
        return self.prefill.fits and self.decode.fits

    @property
    def tokens_per_second(self) -> float:
        return self.shape.batch / self.step_seconds


def plan_sampling(
    workload: Workload, model: Model, params: PyTree, adapters: int, mesh: Mesh, *, rows: int, steps: int = 16,
    chunk: int = 256,
) -> SamplingPlan:  # fmt: skip
    """Compiles for as many rows as there may be: `rows`, or fewer where memory would not hold them.

    Args:
      model: with the shape of its adapters, of which `adapters` are held beside the base.
      params: of the base, as ShapeDtypeStructs with shardings.
    """
    limit = chip_of(mesh.devices.flat[0].device_kind).memory
    model, joined = _with_adapters(model, adapters, mesh)
    held = _bytes((params, joined))
    rows = max(mesh.size, rows - rows % mesh.size)
    while (shape := shape_for(workload, rows, steps, chunk)) and rows > mesh.size:
        if held + _state_bytes(model, shape, mesh) <= _FILLED * limit:
            break
        rows = max(mesh.size, rows // 2 - rows // 2 % mesh.size)
    if math.isinf(_state_bytes(model, shape, mesh)):
        raise UserError(
            f"{workload.name}: {rows} answers of up to {workload.max_tokens:,} tokens do not fit this slice beside the "
            "weights; take a larger one"
        )
    compiled = {}
    for name, (lowered, arguments) in lower(model, params, joined, mesh, shape, steps, chunk).items():
        blocks = -(-shape.prompt // programs.KEY_BLOCK)  # that the last chunk of a prompt looks at
        compiled[name] = compile_for(lowered, mesh, arguments, blocks)
    prefill, decode = compiled["prefill"], compiled["decode"]
    theory = theoretical_bytes(model, params, joined, shape, mesh)
    found = SamplingPlan(workload, shape, chunk, steps, prefill, decode, theory, math.nan, math.nan, math.nan)
    if not found.fits:
        return found
    step = step_seconds(decode, mesh, steps)
    copies = (shape.rows - 1) * _bytes(abstract_state(model, shape, mesh).prompts.keys_and_values)
    calls = workload.prompts * -(-workload.prompt_tokens // chunk)
    drawn = workload.prompts * workload.samples * workload.answer_tokens
    return dataclasses.replace(
        found,
        step_seconds=step,
        apart_seconds=step_seconds(decode, mesh, steps, copies),
        seconds=calls * step_seconds(prefill, mesh, 1) + drawn / shape.batch * step,
    )


def shape_for(workload: Workload, rows: int, steps: int, chunk: int) -> Shape:
    """What the scheduler holds of this workload, with all rows at work."""
    groups = 1
    while rows // groups > max(1, workload.samples) and groups < rows:
        groups *= 2
    answer = bucket(-(-workload.max_tokens // steps) * steps)
    return Shape(groups, rows // groups, max(bucket(workload.prompt_tokens), chunk), answer)


def step_seconds(compiled: Compiled, mesh: Mesh, steps: int, more_bytes: float = 0) -> float:
    """The roofline of a step of a program that has `steps`, if it also read `more_bytes`."""
    chip = chip_of(mesh.devices.flat[0].device_kind)
    memory = (compiled.memory_bytes / steps + more_bytes) / chip.bandwidth
    return max(*(seconds / steps for seconds in roofline_seconds(compiled, mesh)), memory)


def theoretical_bytes(model: Model, params: PyTree, joined: PyTree | None, shape: Shape, mesh: Mesh) -> float:
    """That a chip reads in a step of all rows: each weight once but for the embedding, of which rows are looked up
    (where it is not the head too), each adapter, but no more of them than there are prompts, and the keys and values of
    prompts and rows."""
    weights = dict(params) if model.config.tied_head else {k: v for k, v in params.items() if k != "embedding"}
    state = abstract_state(model, shape, mesh)
    adapters = count_adapters(model, joined)
    read = min(shape.groups, adapters) / adapters * _bytes(joined) if adapters else 0
    return _bytes((weights, state.prompts.keys_and_values, state.rows.keys_and_values)) + read


def abstract_state(model: Model, shape: Shape, mesh: Mesh) -> PyTree:
    """The engine's state as ShapeDtypeStructs with the shardings that `state.placed` gives it."""
    with jax.set_mesh(mesh):
        lowered = programs.empty.lower("tpu", model=model, shape=shape)
        shardings = lowered.compile().output_shardings
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        lowered.out_info,
        shardings,
    )


def _state_bytes(model: Model, shape: Shape, mesh: Mesh) -> float:
    """Of one chip; infinite if a chip cannot hold it."""
    try:
        return _bytes(abstract_state(model, shape, mesh))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf


def lower(
    model: Model, params: PyTree, joined: PyTree | None, mesh: Mesh, shape: Shape, steps: int, chunk: int
) -> dict[str, tuple[jax.stages.Lowered, PyTree]]:
    """The engine's two programs that take the time, for arrays that need not exist, and the arguments of each."""
    state, anywhere = abstract_state(model, shape, mesh), replicated(mesh)
    vocabulary = model.config.vocab_size

    def integers(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, jnp.int32, sharding=anywhere)

    reads = integers(1), integers(1, chunk), integers(1), integers(1), integers(1), integers()
    cancelled = jax.ShapeDtypeStruct((shape.batch,), bool, sharding=anywhere)
    with jax.set_mesh(mesh):
        prefill = programs.prefill.lower("tpu", model, params, joined, state, *reads, vocabulary=vocabulary)
        decode = programs.decode.lower(
            "tpu", model, params, joined, state, cancelled, steps=steps, vocabulary=vocabulary
        )  # fmt: skip
    held = params, joined, state
    return {"prefill": (prefill, (held, reads)), "decode": (decode, (held, cancelled))}


def _with_adapters(model: Model, adapters: int, mesh: Mesh) -> tuple[Model, PyTree | None]:
    """What `adapters.join_adapters` makes of so many, as ShapeDtypeStructs with shardings."""
    if model.lora is None or not adapters:
        return dataclasses.replace(model, lora=None), None
    rank = model.lora.rank
    wide = dataclasses.replace(model, lora=dataclasses.replace(model.lora, rank=adapters * rank))
    joined = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, model.config.dtype, sharding=sharding),
        wide.lora_shapes,
        param_shardings(wide.lora_axes, wide.lora_shapes, mesh),
    )
    return dataclasses.replace(model, lora=dataclasses.replace(model.lora, alpha=float(rank))), joined


def _bytes(tree: PyTree) -> float:
    """Of one chip."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
