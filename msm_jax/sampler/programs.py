"""The compiled programs of a sampler: a chunk of a prompt, rows that begin, a block of steps, and other shapes.

Every setting is an argument, so each is compiled once for a `Shape`. The state is donated.

Rows, of prompts that are read as of answers that are drawn, are the first axis of what the decoder gets: that is the
axis which a mesh splits.

Shapes: G groups, R rows of a group, B = G R rows, N steps of a block, J prompts that are read, C tokens of a chunk,
V vocabulary, K likeliest ids; R also an adapter's rank, and Z that of all adapters side by side.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from msm_jax.models import Model
from msm_jax.parallel import sampling_options
from msm_jax.parallel.sharding import constrain
from msm_jax.sampler.adapters import RANK_AXIS, count_adapters
from msm_jax.sampler.attention import attend_chunk, attend_decoding
from msm_jax.sampler.draw import LIKELIEST, Drawn, Settings, draw, sample_keys
from msm_jax.sampler.state import Int8, Prompts, Rows, Shape, State, empty_state, placed, to_int8, whole_rows

PyTree = Any


def program(function: Callable, **settings: Any) -> Callable:
    """A jitted function, compiled with the options that suit sampling on the devices at hand."""

    @functools.cache
    def on(platform: str) -> Callable:
        return jax.jit(function, compiler_options=sampling_options(platform), **settings)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return on(jax.default_backend())(*args, **kwargs)

    call.lower = lambda platform, *args, **kwargs: on(platform).lower(*args, **kwargs)
    return call


KEY_BLOCK = 512  # prompt slots that a chunk looks at in one product
SCORED_AT_ONCE = 128  # tokens whose logits are held at once


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


class Scores(NamedTuple):
    """Log-probabilities, in nats, of the tokens of chunks after their first, given those before them."""

    logprob: jax.Array  # float32[J, C - 1]
    likeliest_ids: jax.Array  # int32[J, C - 1, K]
    likeliest_logprobs: jax.Array  # float32[J, C - 1, K]


@functools.partial(program, static_argnames=("model", "vocabulary"), donate_argnames="state")
def prefill(
    model: Model, params: PyTree, adapters: PyTree | None, state: State, groups_J, tokens_JC, start_J, count_J,
    adapter_J, likeliest, *, vocabulary: int,
) -> tuple[State, Scores]:  # fmt: skip
    """Reads a chunk of each of J prompts, whose first token belongs in slot `start`; of its C tokens `count` count.

    Args:
      groups_J: what lies behind the last group is read for nothing.
      likeliest: int32[], of how many ids log-probabilities are wanted beside each token's own. -1: of none at all, and
        the scores are zeros.
      vocabulary: ids that the tokenizer can spell.
    """
    prompts, axis = state.prompts, _group_axis(model.execution.stacked)
    J, C = tokens_JC.shape

    def attend(q, k, v, kept):
        q_JCHD, k_JCKD, v_JCKD = (x.reshape(J, C, *x.shape[2:]) for x in (q, k, v))
        kept = tuple(_write(old, new, start_J) for old, new in zip(kept, (k_JCKD, v_JCKD), strict=True))
        mixed_JCHD = attend_chunk(q_JCHD, *kept, start_J, KEY_BLOCK)
        return _unless_spoilt(mixed_JCHD.reshape(q.shape), k, v), kept

    lora, mask_NZ = _adapters_of_rows(model, adapters, adapter_J, J * C)
    positions_JC = start_J[:, None] + jnp.arange(C)
    before = jax.tree.map(lambda x: _take(x, groups_J, axis), prompts.keys_and_values)
    x_N1M, kept = model.extend(
        params, lora, tokens_JC.reshape(-1, 1), positions_JC.reshape(-1, 1), attend, before, mask_NZ
    )
    x_JCM = x_N1M.reshape(J, C, -1)
    last_JM = jnp.take_along_axis(x_JCM, (count_J - 1)[:, None, None], axis=1)[:, 0]
    put = functools.partial(_put, places=groups_J)
    prompts = Prompts(
        jax.tree.map(functools.partial(put, axis=axis), prompts.keys_and_values, kept),
        tokens=put(prompts.tokens, _write_tokens(_take(prompts.tokens, groups_J), tokens_JC, start_J)),
        length=put(prompts.length, start_J + count_J),
        adapter=put(prompts.adapter, adapter_J),
        logits=put(prompts.logits, _spelled(model.logits(params, last_JM), vocabulary)),
    )
    scores = jax.lax.switch(
        jnp.minimum(likeliest, 1) + 1,
        [functools.partial(_scores, model, wanted=wanted, vocabulary=vocabulary) for wanted in (None, 0, LIKELIEST)],
        params, x_JCM[:, :-1], tokens_JC[:, 1:],
    )  # fmt: skip
    return placed(dataclasses.replace(state, prompts=prompts)), scores


def _scores(model: Model, params: PyTree, x_JCM, targets_JC, wanted: int | None, vocabulary: int) -> Scores:
    J, C = targets_JC.shape
    K = min(LIKELIEST, model.config.vocab_size)
    nothing = jnp.zeros((J, C, K), jnp.int32), jnp.zeros((J, C, K), jnp.float32)
    if wanted is None:
        return Scores(jnp.zeros((J, C), jnp.float32), *nothing)

    def of_token(x_and_target):
        x_M, target = x_and_target
        logits_V = _spelled(model.logits(params, x_M), vocabulary)
        normaliser = jax.nn.logsumexp(logits_V)
        # By comparison: an index into a vocabulary that is split over devices would gather it.
        logprob = jnp.sum(logits_V, where=jnp.arange(len(logits_V)) == target) - normaliser
        if not wanted:
            return logprob
        values_K, ids_K = jax.lax.top_k(logits_V, K)
        return logprob, ids_K, values_K - normaliser

    flat = x_JCM.reshape(J * C, -1), targets_JC.reshape(-1)
    found = jax.lax.map(of_token, flat, batch_size=min(SCORED_AT_ONCE, J * C))
    if not wanted:
        return Scores(found.reshape(J, C), *nothing)
    return Scores(*(x.reshape(J, C, *x.shape[1:]) for x in found))


@functools.partial(program, static_argnames=("stacked",), donate_argnames="state")
def copy_prompts(state: State, sources_J, targets_J, length_J, *, stacked: bool) -> State:
    """The first `length` slots of some groups' prompts become those of others; what is copied behind the last group is
    copied for nothing."""

    def copy(x, axis=0):
        return _put(x, _take(x, sources_J, axis), targets_J, axis)

    old = state.prompts
    prompts = Prompts(
        jax.tree.map(functools.partial(copy, axis=_group_axis(stacked)), old.keys_and_values),
        tokens=copy(old.tokens),
        length=_put(old.length, length_J, targets_J),
        adapter=copy(old.adapter),
        logits=copy(old.logits),
    )
    return placed(dataclasses.replace(state, prompts=prompts))


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
    rows = Rows(
        rows.keys_and_values,
        length=chosen(0, rows.length),
        logits=chosen(jnp.repeat(prompts.logits, R, axis=0), rows.logits),
        limit=chosen(admitted.limit, rows.limit),
        done=chosen(False, rows.done),
        stop_ids=chosen(admitted.stop_ids, rows.stop_ids),
        counts=chosen(jnp.int16(0), rows.counts),
        in_prompt=jax.lax.cond(penalised, mark, lambda x: x, rows.in_prompt),
        settings=jax.tree.map(chosen, admitted.settings._replace(key=sample_keys(admitted.origin)), rows.settings),
    )
    return placed(dataclasses.replace(state, rows=rows))


@functools.partial(program, static_argnames=("model", "steps", "vocabulary"), donate_argnames="state")
def decode(
    model: Model, params: PyTree, adapters: PyTree | None, state: State, cancelled_B, *, steps: int, vocabulary: int
) -> tuple[State, Block]:
    """A block of steps: each draws a token of every row that is not done, and reads it.

    Keys and values of a block lie apart, where all rows write to the same slot, and are put behind those of their row
    at the end: a row's numbers do not depend on when the others began.
    """
    prompts, rows = state.prompts, state.rows
    B, stacked = len(rows.length), model.execution.stacked
    lora, mask_BZ = _adapters_of_rows(model, adapters, prompts.adapter, B)
    start_B = jnp.repeat(prompts.length, B // len(prompts.length)) + rows.length
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
        token_B = constrain(jnp.where(alive_B, drawn.token, 0), ("batch",))
        limit_B -= alive_B.astype(limit_B.dtype)
        done_B |= (token_B[:, None] == rows.stop_ids).any(axis=1) | (limit_B <= 0)
        counts_BV = counts_BV.at[jnp.arange(B), token_B].add(alive_B.astype(counts_BV.dtype))

        def attend(q, k, v, kept):
            prompt, row, block = kept
            block = tuple(
                jax.lax.dynamic_update_slice_in_dim(old, _finite(new).swapaxes(1, 2).astype(old.dtype), index, axis=2)
                for old, new in zip(block, (k, v), strict=True)
            )
            mixed_BHD = attend_decoding(q[:, 0], prompt, prompts.length, row, rows.length, block, index)
            return _unless_spoilt(mixed_BHD[:, None], k, v), block

        kept = by_layer(prompts.keys_and_values, rows.keys_and_values, fresh)
        x_B1M, fresh = model.extend(params, lora, token_B[:, None], (start_B + index)[:, None], attend, kept, mask_BZ)
        finite_B = jnp.isfinite(logits_BV[:, 0])
        logits_BV = constrain(model.logits(params, x_B1M[:, 0]), ("batch", "vocab"))
        logits_BV = whole_rows(_spelled(logits_BV, vocabulary))
        return (logits_BV, counts_BV, limit_B, done_B, fresh), Block(alive_B, drawn, finite_B)

    start = (rows.logits, rows.counts, rows.limit, rows.done | cancelled_B, fresh)
    (logits_BV, counts_BV, limit_B, done_B, fresh), block = jax.lax.scan(step, start, jnp.arange(steps))
    rows = dataclasses.replace(
        rows,
        keys_and_values=jax.tree.map(
            lambda old, new: _append(old, new, rows.length, stacked=stacked), rows.keys_and_values, fresh
        ),
        length=jnp.minimum(rows.length + steps, _slots(rows)),
        logits=logits_BV,
        limit=limit_B,
        done=done_B,
        counts=counts_BV,
    )
    return placed(dataclasses.replace(state, rows=rows)), block


@functools.partial(program, static_argnames=("shape", "stacked"))
def reshape(state: State, group_from, row_from, *, shape: Shape, stacked: bool) -> State:
    """The state in another shape: group g holds the prompt of `group_from[g]`, row b goes on with what row
    `row_from[b]` had. -1: nothing; such a row is done. What lies behind the new number of slots is cut off."""
    axis = _group_axis(stacked)

    def sized(x, axis: int, size: int):
        x = jax.lax.slice_in_dim(x, 0, min(size, x.shape[axis]), axis=axis)
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, size - x.shape[axis])
        return jnp.pad(x, padding)

    def moved(x, places, slots: int):
        return sized(jnp.take(x, jnp.maximum(places, 0), axis=axis), x.ndim - 2, slots)

    take_groups = functools.partial(jnp.take, indices=jnp.maximum(group_from, 0), axis=0)
    take_rows = functools.partial(jnp.take, indices=jnp.maximum(row_from, 0), axis=0)
    old = state.prompts
    prompts = Prompts(
        jax.tree.map(lambda x: moved(x, group_from, shape.prompt), old.keys_and_values),
        tokens=sized(take_groups(old.tokens), 1, shape.prompt),
        length=jnp.where(group_from >= 0, take_groups(old.length), 0),
        adapter=take_groups(old.adapter),
        logits=take_groups(old.logits),
    )
    others = {field.name: getattr(state.rows, field.name) for field in dataclasses.fields(Rows)}
    keys_and_values = jax.tree.map(lambda x: moved(x, row_from, shape.answer), others.pop("keys_and_values"))
    rows = Rows(keys_and_values, **{name: jax.tree.map(take_rows, x) for name, x in others.items()})
    return placed(State(prompts, dataclasses.replace(rows, done=rows.done | (row_from < 0))))


@functools.partial(program, static_argnames=("model", "shape", "int8_prompts"))
def empty(*, model: Model, shape: Shape, int8_prompts: bool = False) -> State:
    """A state of nothing."""
    return placed(empty_state(model.config, shape, model.execution.stacked, int8_prompts))


def _group_axis(stacked: bool) -> int:
    """Of keys and values, and of adapters: layers come first where they are stacked."""
    return 1 if stacked else 0


def _take(x, places, axis: int = 0):
    if len(places) == 1:
        return jax.lax.dynamic_slice_in_dim(x, places[0], 1, axis=axis)
    return jnp.take(x, places, axis=axis, mode="clip")


def _put(x, new, places, axis: int = 0):
    """`new` in these places of an axis; what lies behind its end is left out, but if it is the only one."""
    if len(places) == 1:
        return jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), places[0], axis=axis)
    return x.at[(slice(None),) * axis + (places,)].set(new.astype(x.dtype), mode="drop")


def _write(old_JKPD, new_JCKD, start_J):
    """Keys or values of chunks, in their slots."""
    new_JKCD = _finite(new_JCKD).swapaxes(1, 2)
    new_JKCD = to_int8(new_JKCD) if isinstance(old_JKPD, Int8) else new_JKCD.astype(old_JKPD.dtype)
    put = jax.vmap(functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1))
    return jax.tree.map(lambda old, new: put(old, new, start_J), old_JKPD, new_JKCD)


def _write_tokens(old_JP, new_JC, start_J):
    return jax.vmap(functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=0))(old_JP, new_JC, start_J)


def _own_adapters(model: Model, adapters: PyTree, places_J) -> PyTree:
    """A copy of the adapter of each place: matrices [J, M, R] and [J, R, F], after the axis of layers if there is
    one. Place 0 is the bare base: what it would add is nothing."""
    rank, first = model.lora.rank, _group_axis(model.execution.stacked)

    def own(path, x):
        axis = RANK_AXIS[path[-1].key] + x.ndim

        def of_place(place):
            part = jax.lax.dynamic_slice_in_dim(x, (place - 1) * rank, rank, axis=axis)
            return jnp.where(place > 0, part, 0) if path[-1].key == "lora_b" else part

        # One by one, since a gather is slow on a CPU.
        return jnp.stack([of_place(place) for place in places_J], axis=first)

    return jax.tree_util.tree_map_with_path(own, adapters)


def _adapters_of_rows(model: Model, adapters: PyTree | None, places_G, N: int) -> tuple[PyTree | None, Any]:
    """What `Model.extend` takes for N rows of G prompts with these adapters: matrices, and the mask bool[N, Z] or None.

    Where prompts are fewer than adapters, each prompt has a copy of its own. Otherwise all rows are multiplied by all
    adapters, and each keeps what is its own: every adapter is read once, and none is copied.
    """
    if len(places_G) < count_adapters(model, adapters):
        return _own_adapters(model, adapters, places_G), None
    if adapters is None:
        return None, None
    places_N = jnp.repeat(places_G, N // len(places_G))
    columns_Z = jnp.repeat(jnp.arange(count_adapters(model, adapters)), model.lora.rank)
    return adapters, columns_Z == places_N[:, None] - 1


def _append(old, new, length_B, *, stacked: bool):
    """Puts [B, K, N, D] behind the first `length` slots of [B, K, S, D]."""

    def of_row(old_KSD, new_KND, length):
        return jax.lax.dynamic_update_slice_in_dim(old_KSD, new_KND, length, axis=1)

    of_layer = jax.vmap(of_row)
    return jax.vmap(of_layer, in_axes=(0, 0, None))(old, new, length_B) if stacked else of_layer(old, new, length_B)


def _slots(rows: Rows) -> int:
    return jax.tree.leaves(rows.keys_and_values)[0].shape[-2]


def _finite(x):
    """A stale number that is none would spoil its slot for the next row: nothing, times what is no number, is none."""
    return jnp.where(jnp.isfinite(x), x, 0)


def _unless_spoilt(mixed_BTHD, k, v):
    """No number for tokens whose own keys or values are none, so that their answer ends with an error."""
    whole_BT11 = (jnp.isfinite(k) & jnp.isfinite(v)).all(axis=(2, 3), keepdims=True)
    return jnp.where(whole_BT11, mixed_BTHD, jnp.nan)


def _spelled(logits, vocabulary: int):
    """Rules out ids that pad the embedding to a round size: the tokenizer cannot spell them."""
    return jnp.where(jnp.arange(logits.shape[-1]) < vocabulary, logits, -jnp.inf)
