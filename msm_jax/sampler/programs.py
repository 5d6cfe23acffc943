"""The compiled programs of a sampler: a chunk of a prompt, rows that begin, a block of steps, and other shapes.

Every setting is an argument, so each is compiled once for a `Shape`. The state is donated.

Shapes: G groups, R rows of a group, B = G R rows, N steps of a block, C tokens of a chunk, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from msm_jax.models import Model
from msm_jax.parallel import sampling_options
from msm_jax.sampler.attention import attend_chunk, attend_decoding
from msm_jax.sampler.draw import Drawn, Settings, draw, sample_keys
from msm_jax.sampler.state import Prompts, Rows, Shape, State

PyTree = Any


def program(function: Callable, **settings: Any) -> Callable:
    """A jitted function, compiled with the options that suit sampling on the devices at hand."""

    @functools.cache
    def on(platform: str) -> Callable:
        return jax.jit(function, compiler_options=sampling_options(platform), **settings)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return on(jax.default_backend())(*args, **kwargs)

    call.compiled = lambda: on(jax.default_backend())._cache_size()
    return call


KEY_BLOCK = 512  # prompt slots that a chunk looks at in one product


class Admitted(NamedTuple):
    """Rows that begin: all rows have entries, of which those of `rows` count."""

    rows: jax.Array  # bool[B]
    limit: jax.Array  # int32[B]
    stop_ids: jax.Array  # int32[B, E]
    origin: jax.Array  # uint32[B, 4], of the random numbers: see `draw.sample_keys`
    settings: Settings  # but for their keys


class Block(NamedTuple):
    """What a block of steps drew."""

    alive: jax.Array  # bool[N, B], whether the row drew this token
    drawn: Drawn  # of [N, B]
    finite: jax.Array  # bool[N, B], whether the model gave numbers


@functools.partial(program, static_argnames=("model", "vocabulary"), donate_argnames="state")
def prefill(
    model: Model, params: PyTree, adapters: PyTree | None, state: State, group, tokens_C, start, count, adapter,
    *, vocabulary: int,
) -> State:  # fmt: skip
    """Reads a chunk of one group's prompt, whose first token belongs in slot `start`; of its C tokens `count` count.
    `vocabulary`: ids that the tokenizer can spell."""
    prompts = state.prompts
    layers_axis = 1 if model.execution.stacked else 0
    of_group = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=group, slice_size=1, axis=layers_axis)
    C = tokens_C.shape[0]

    def attend(q, k, v, kept):
        kept = tuple(
            jax.lax.dynamic_update_slice_in_dim(old, _finite(new).swapaxes(1, 2).astype(old.dtype), start, axis=2)
            for old, new in zip(kept, (k, v), strict=True)
        )
        return _unless_spoilt(attend_chunk(q, *kept, start[None], KEY_BLOCK), k, v), kept

    lora = _take_adapters(adapters, adapter[None], layers_axis)
    positions_1C = (start + jnp.arange(C))[None]
    x_1CM, kept = model.extend(
        params, lora, tokens_C[None], positions_1C, attend, jax.tree.map(of_group, prompts.keys_and_values)
    )
    last_1M = jax.lax.dynamic_slice_in_dim(x_1CM[0], count - 1, 1, axis=0)
    logits_1V = _spelled(model.logits(params, last_1M), vocabulary)
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=group)
    everything = jax.tree.map(functools.partial(put, axis=layers_axis), prompts.keys_and_values, kept)
    prompts = Prompts(
        everything,
        tokens=jax.lax.dynamic_update_slice(prompts.tokens, tokens_C[None], (group, start)),
        length=prompts.length.at[group].set(start + count),
        adapter=prompts.adapter.at[group].set(adapter),
        logits=put(prompts.logits, logits_1V, axis=0),
    )
    return dataclasses.replace(state, prompts=prompts)


@functools.partial(program, static_argnames=("stacked",), donate_argnames="state")
def copy_prompt(state: State, source, target, length, *, stacked: bool) -> State:
    """The first `length` slots of one group's prompt become those of another."""
    axis = 1 if stacked else 0

    def copy(x, axis=0):
        row = jax.lax.dynamic_slice_in_dim(x, source, 1, axis=axis)
        return jax.lax.dynamic_update_slice_in_dim(x, row, target, axis=axis)

    old = state.prompts
    prompts = Prompts(
        jax.tree.map(functools.partial(copy, axis=axis), old.keys_and_values),
        tokens=copy(old.tokens),
        length=old.length.at[target].set(length),
        adapter=copy(old.adapter),
        logits=copy(old.logits),
    )
    return dataclasses.replace(state, prompts=prompts)


@functools.partial(program, donate_argnames="state")
def admit(state: State, admitted: Admitted) -> State:
    """Rows begin after their group's prompt."""
    rows, prompts = state.rows, state.prompts
    new_B = admitted.rows
    B, V = rows.logits.shape
    R = B // prompts.length.shape[0]

    def chosen(new, old):
        return jnp.where(new_B.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    def mark(in_prompt_BV):
        G, P = prompts.tokens.shape
        known_GP = jnp.arange(P) < prompts.length[:, None]
        marked_GV = jnp.zeros((G, V), bool).at[jnp.arange(G)[:, None], prompts.tokens].max(known_GP)
        return chosen(jnp.repeat(marked_GV, R, axis=0), in_prompt_BV)

    penalised = jnp.any(new_B & (admitted.settings.repetition_penalty != 1))
    return dataclasses.replace(
        state,
        rows=Rows(
            rows.keys_and_values,
            length=chosen(0, rows.length),
            logits=chosen(jnp.repeat(prompts.logits, R, axis=0), rows.logits),
            limit=chosen(admitted.limit, rows.limit),
            done=chosen(False, rows.done),
            stop_ids=chosen(admitted.stop_ids, rows.stop_ids),
            counts=chosen(jnp.int16(0), rows.counts),
            in_prompt=jax.lax.cond(penalised, mark, lambda x: x, rows.in_prompt),
            settings=jax.tree.map(chosen, admitted.settings._replace(key=sample_keys(admitted.origin)), rows.settings),
        ),
    )


@functools.partial(program, static_argnames=("model", "steps", "vocabulary"), donate_argnames="state")
def decode(
    model: Model, params: PyTree, adapters: PyTree | None, state: State, cancelled_B, *, steps: int, vocabulary: int
) -> tuple[State, Block]:
    """A block of steps: each draws a token of every row that is not done, and reads it.

    Keys and values of a block lie apart, where all rows write to the same slot, and are put behind those of their row
    at the end: a row's numbers do not depend on when the others began.
    """
    prompts, rows = state.prompts, state.rows
    G, B = len(prompts.length), len(rows.length)
    R, stacked = B // G, model.execution.stacked
    lora = _take_adapters(adapters, prompts.adapter, 1 if stacked else 0)
    length_GR = rows.length.reshape(G, R)
    fresh = jax.tree.map(
        lambda old: jnp.zeros((*old.shape[:-2], steps, old.shape[-1]), old.dtype), rows.keys_and_values
    )

    def by_layer(*trees):
        """What the layers keep: a list of tuples, or a tuple of what is stacked."""
        return trees if stacked else list(zip(*trees, strict=True))

    def step(carry, index):
        logits_BV, counts_BV, limit_B, done_B, fresh = carry
        drawn = draw(logits_BV, rows.settings, rows.length + index, counts_BV, rows.in_prompt)
        alive_B = ~done_B
        token_B = jnp.where(alive_B, drawn.token, 0)
        limit_B -= alive_B.astype(limit_B.dtype)
        done_B |= (token_B[:, None] == rows.stop_ids).any(axis=1) | (limit_B <= 0)
        counts_BV = counts_BV.at[jnp.arange(B), token_B].add(alive_B.astype(counts_BV.dtype))

        def attend(q, k, v, kept):
            prompt, row, block = kept
            block = tuple(
                jax.lax.dynamic_update_slice_in_dim(old, _finite(new)[:, :, :, None].astype(old.dtype), index, axis=3)
                for old, new in zip(block, (k, v), strict=True)
            )
            mixed = attend_decoding(q, prompt, prompts.length, row, length_GR, block, index)
            return _unless_spoilt(mixed, k, v), block

        positions_GR = prompts.length[:, None] + length_GR + index
        kept = by_layer(prompts.keys_and_values, rows.keys_and_values, fresh)
        x_GRM, fresh = model.extend(params, lora, token_B.reshape(G, R), positions_GR, attend, kept)
        finite_B = jnp.isfinite(logits_BV[:, 0])
        logits_BV = _spelled(model.logits(params, x_GRM.reshape(B, -1)), vocabulary)
        return (logits_BV, counts_BV, limit_B, done_B, fresh), Block(alive_B, drawn, finite_B)

    start = (rows.logits, rows.counts, rows.limit, rows.done | cancelled_B, fresh)
    (logits_BV, counts_BV, limit_B, done_B, fresh), block = jax.lax.scan(step, start, jnp.arange(steps))
    rows = dataclasses.replace(
        rows,
        keys_and_values=jax.tree.map(
            lambda old, new: _append(old, new, length_GR, stacked=stacked), rows.keys_and_values, fresh
        ),
        length=jnp.minimum(rows.length + steps, _slots(rows)),
        logits=logits_BV,
        limit=limit_B,
        done=done_B,
        counts=counts_BV,
    )
    return dataclasses.replace(state, rows=rows), block


@functools.partial(program, static_argnames=("shape", "stacked"))
def reshape(state: State, group_from, row_from, *, shape: Shape, stacked: bool) -> State:
    """The state in another shape: group g holds the prompt of `group_from[g]`, row b goes on with what row
    `row_from[b]` had. -1: nothing; such a row is done. What lies behind the new number of slots is cut off."""
    G, R, P, S = shape.groups, shape.rows, shape.prompt, shape.answer
    first = 1 if stacked else 0

    def sized(x, axis: int, size: int):
        x = jax.lax.slice_in_dim(x, 0, min(size, x.shape[axis]), axis=axis)
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, size - x.shape[axis])
        return jnp.pad(x, padding)

    def of_prompts(x):
        return sized(jnp.take(x, jnp.maximum(group_from, 0), axis=first), x.ndim - 2, P)

    def of_rows(x):
        flat = x.reshape(*x.shape[:first], -1, *x.shape[first + 2 :])
        taken = sized(jnp.take(flat, jnp.maximum(row_from, 0), axis=first), flat.ndim - 2, S)
        return taken.reshape(*x.shape[:first], G, R, *taken.shape[first + 1 :])

    take_groups = functools.partial(jnp.take, indices=jnp.maximum(group_from, 0), axis=0)
    take_rows = functools.partial(jnp.take, indices=jnp.maximum(row_from, 0), axis=0)
    old = state.prompts
    prompts = Prompts(
        jax.tree.map(of_prompts, old.keys_and_values),
        tokens=sized(take_groups(old.tokens), 1, P),
        length=jnp.where(group_from >= 0, take_groups(old.length), 0),
        adapter=take_groups(old.adapter),
        logits=take_groups(old.logits),
    )
    others = {field.name: getattr(state.rows, field.name) for field in dataclasses.fields(Rows)}
    keys_and_values = jax.tree.map(of_rows, others.pop("keys_and_values"))
    rows = Rows(keys_and_values, **{name: jax.tree.map(take_rows, x) for name, x in others.items()})
    return State(prompts, dataclasses.replace(rows, done=rows.done | (row_from < 0)))


def _take_adapters(adapters: PyTree | None, places, axis: int) -> PyTree | None:
    return None if adapters is None else jax.tree.map(lambda x: jnp.take(x, places, axis=axis), adapters)


def _append(old, new, length_GR, *, stacked: bool):
    """Puts [G, R, K, N, D] behind the first `length` slots of [G, R, K, S, D]."""

    def of_row(old_KSD, new_KND, length):
        return jax.lax.dynamic_update_slice_in_dim(old_KSD, new_KND, length, axis=1)

    of_layer = jax.vmap(jax.vmap(of_row))
    return jax.vmap(of_layer, in_axes=(0, 0, None))(old, new, length_GR) if stacked else of_layer(old, new, length_GR)


def _slots(rows: Rows) -> int:
    return jax.tree.leaves(rows.keys_and_values)[0].shape[-2]


def _finite(x):
    """A stale number that is none would spoil its slot for the next row: nothing, times what is no number, is none."""
    return jnp.where(jnp.isfinite(x), x, 0)


def _unless_spoilt(mixed_GTHD, k, v):
    """No number for tokens whose own keys or values are none, so that their answer ends with an error."""
    whole_GT11 = (jnp.isfinite(k) & jnp.isfinite(v)).all(axis=(2, 3), keepdims=True)
    return jnp.where(whole_GT11, mixed_GTHD, jnp.nan)


def _spelled(logits, vocabulary: int):
    """Rules out ids that pad the embedding to a round size: the tokenizer cannot spell them."""
    return jnp.where(jnp.arange(logits.shape[-1]) < vocabulary, logits, -jnp.inf)
