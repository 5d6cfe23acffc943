"""One training step, the same for pretraining, MSM and AFT, for a full model and for an adapter on a frozen base.

Shapes: A accumulation steps, B rows of a microbatch, T tokens.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from msm_jax.models import Model, count_parameters
from msm_jax.parallel import batch_sharding, compiler_options, param_shardings, replicated
from msm_jax.train.optimizer import OptimizerConfig, init_optimizer, make_optimizer, make_schedule

PyTree = Any
Batch = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What training changes, and a checkpoint holds. A frozen base is not part of it."""

    step: jax.Array  # int32[], batches seen; those whose loss was not finite count, though they changed nothing else
    params: PyTree  # what is trained, float32: the adapter, or the whole model
    opt_state: PyTree  # optax state of `params`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """Sums over the global batch, and over each row of it; float32 but where said otherwise."""

    loss_sum: jax.Array  # [], nats
    weight: jax.Array  # [], trained targets
    tokens: jax.Array  # [], tokens that are not padding
    row_loss_sum: jax.Array  # [A, B]
    row_weight: jax.Array  # [A, B]
    source: jax.Array  # int32[A, B], of the rows
    grad_norm: jax.Array  # [], of the mean loss, before clipping
    learning_rate: jax.Array  # []
    finite: jax.Array  # [], bool: the update was made


StepFunction = Callable[[TrainState, PyTree, Batch], tuple[TrainState, StepMetrics]]


def targets_and_weights(tokens_BT, segments_BT, mask_BT) -> tuple[jax.Array, jax.Array]:
    """Shifts tokens into targets: int32[B, T] and their weights float32[B, T], 0 or 1. Position t predicts token t+1 if
    that is trained and of the same segment; the last position has no target."""

    def shift(x_BT: jax.Array) -> jax.Array:
        return jnp.pad(x_BT[:, 1:], ((0, 0), (0, 1)))

    weights_BT = shift(mask_BT) & (shift(segments_BT) == segments_BT) & (segments_BT > 0)
    return shift(tokens_BT), weights_BT.astype(jnp.float32)


def microbatch_loss(model: Model, trained: PyTree, frozen: PyTree | None, batch: Batch):
    """Loss sum of one microbatch, and (sums over it, sums over each row); divided once, globally, by whoever has seen
    the whole batch. `frozen` is the base if the adapter is what is trained."""
    params, lora = (trained, None) if frozen is None else (frozen, trained)
    targets_BT, weights_BT = targets_and_weights(batch["tokens"], batch["segments"], batch["mask"])
    rows = batch["tokens"], batch["segments"], batch["positions"]
    loss_sum, losses_BT = model.loss(params, lora, *rows, targets_BT, weights_BT)
    counts = {"loss_sum": loss_sum, "weight": weights_BT.sum()}
    counts["tokens"] = (batch["segments"] > 0).sum().astype(jnp.float32)
    by_row = {"row_loss_sum": losses_BT.sum(axis=1), "row_weight": weights_BT.sum(axis=1)}
    return loss_sum, (counts, by_row)


def flops_per_token(model: Model, row_length: int) -> float:
    """Model FLOPs of a training step for one token of a row, forward and backward, without recomputation.

    A full step costs 6 per matrix parameter (2 forward, 2 for each of the two gradients). With a frozen base its
    weight gradients fall away: 4 per base and 6 per adapter parameter. Causal attention adds, per layer, 6 times
    row_length * heads * head size (the two products, halved by causality), as in appendix B of arXiv 2204.02311;
    packing lowers the true cost of attention, so this is an upper bound.
    """
    c, base = model.config, dataclasses.replace(model, lora=None, int8_base=False)
    matrices = count_parameters(base.shapes["layers"]) + c.width * c.vocab_size  # the head's counts, tied or not
    linear = 6 * matrices if model.lora is None else 4 * matrices + 6 * count_parameters(model.lora_shapes)
    return float(linear + 6 * c.num_layers * row_length * c.num_heads * c.head_size)


def make_train_step(model: Model, optimizer: OptimizerConfig, steps: int, mesh: Mesh) -> StepFunction:
    """The step of a run of `steps` steps. Stages, arms and seeds whose arrays have equal shapes share what is compiled,
    whatever their number of steps, learning rate and sources.

    `step(state, frozen, batch)` donates the state. Batch arrays: tokens, segments, positions int32[A, B, T],
    mask bool[A, B, T], source int32[A, B]. Gradients of the *summed* loss are accumulated over A and divided once
    by the number of trained targets in the global batch, so the split into A, rows or hosts changes nothing.
    If the loss or its gradient is not finite, parameters and optimiser state stay as they were.
    """
    jitted = _jit_step(model, mesh)

    def step_on_mesh(state: TrainState, frozen: PyTree | None, batch: Batch) -> tuple[TrainState, StepMetrics]:
        with jax.set_mesh(mesh):
            return jitted(state, frozen, batch, optimizer, steps)

    return step_on_mesh


@functools.lru_cache(maxsize=32)
def _jit_step(model: Model, mesh: Mesh) -> Callable:
    gradient = jax.grad(functools.partial(microbatch_loss, model), has_aux=True)

    def step(
        state: TrainState, frozen: PyTree | None, batch: Batch, optimizer: OptimizerConfig, steps: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        def accumulate(total, microbatch):
            gradients, (counts, rows) = gradient(state.params, frozen, microbatch)
            return jax.tree.map(jnp.add, total, (gradients, counts)), rows

        microbatch_shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)
        gradients, (counts, _) = jax.eval_shape(gradient, state.params, frozen, microbatch_shapes)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (gradients, counts))
        (gradients, counts), rows = jax.lax.scan(accumulate, zeros, batch)
        gradients = jax.tree.map(lambda g: g / jnp.maximum(counts["weight"], 1.0), gradients)
        grad_norm = optax.tree.norm(gradients)

        updates, opt_state = make_optimizer(optimizer, steps).update(gradients, state.opt_state, state.params)
        updated = (optax.apply_updates(state.params, updates), opt_state)
        finite = jnp.isfinite(counts["loss_sum"]) & jnp.isfinite(grad_norm)
        keep = functools.partial(jnp.where, finite)
        params, opt_state = jax.tree.map(keep, updated, (state.params, state.opt_state))
        rate = make_schedule(optimizer, steps)(state.step)
        metrics = StepMetrics(
            **counts, **rows, source=batch["source"], grad_norm=grad_norm, learning_rate=rate, finite=finite
        )
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

    out_shardings = (state_shardings(model, mesh), replicated(mesh))
    options = compiler_options(mesh.devices.flat[0].platform, model.config.dtype, model.config.tied_head)
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings, compiler_options=options)


def lower_train_step(
    model: Model,
    optimizer: OptimizerConfig,
    mesh: Mesh,
    frozen: PyTree | None,
    *,
    batch_size: int,
    accumulation: int,
    row_length: int,
) -> tuple[jax.stages.Lowered, PyTree]:
    """The step of `make_train_step` lowered for arrays that need not exist, on devices that need not either: what can
    be compiled, and its arguments (state, frozen, batch), as `frozen` ShapeDtypeStructs with shardings."""
    of, jitted = jax.ShapeDtypeStruct, _jit_step(model, mesh)
    shapes = jax.eval_shape(_fresh_state, _trained(model)[1])
    state = jax.tree.map(lambda x, place: of(x.shape, x.dtype, sharding=place), shapes, state_shardings(model, mesh))
    rows, shape = batch_sharding(mesh, leading=1), (accumulation, batch_size // accumulation, row_length)
    batch = {name: of(shape, jnp.int32, sharding=rows) for name in ("tokens", "segments", "positions")}
    batch |= {"mask": of(shape, jnp.bool_, sharding=rows), "source": of(shape[:2], jnp.int32, sharding=rows)}
    with jax.set_mesh(mesh):  # under which nothing can be computed, where there are no such devices
        return jitted.lower(state, frozen, batch, optimizer, 2), (state, frozen, batch)


def _trained(model: Model) -> tuple[PyTree, PyTree]:
    """Axes and shapes of what is trained."""
    return (model.axes, model.shapes) if model.lora is None else (model.lora_axes, model.lora_shapes)


def _fresh_state(params: PyTree) -> TrainState:
    return TrainState(step=jnp.int32(0), params=params, opt_state=init_optimizer(params))


def state_shardings(model: Model, mesh: Mesh) -> TrainState:
    """Shardings for a whole TrainState: optimiser moments lie where their parameters lie."""
    axes, shapes = _trained(model)
    params = param_shardings(axes, shapes, mesh)
    opt_state = optax.tree_map_params(
        init_optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(init_optimizer, shapes),
        params,
        transform_non_params=lambda _: replicated(mesh),
    )
    return TrainState(step=replicated(mesh), params=params, opt_state=opt_state)


def init_state(model: Model, mesh: Mesh, seed: int, params: PyTree | None = None) -> TrainState:
    """A fresh state on the mesh, around a copy of `params` where given, else around random ones drawn from `seed`."""
    return _make_init(model, mesh)(jax.random.key(seed), params)


@functools.lru_cache(maxsize=32)
def _make_init(model: Model, mesh: Mesh) -> Callable[[jax.Array, PyTree | None], TrainState]:
    draw = model.init if model.lora is None else model.init_lora

    def init(key: jax.Array, params: PyTree | None) -> TrainState:
        return _fresh_state(draw(key) if params is None else params)

    return jax.jit(init, out_shardings=state_shardings(model, mesh))
