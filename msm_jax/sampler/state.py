"""What the devices hold of a sampler: prompts, and the rows that go on from them.

Shapes: G groups, R rows of a group, B = G R rows, L layers, K key heads, D head size, P prompt slots, S slots of a row,
V vocabulary, E ids that end a row.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from msm_jax.models import DecoderConfig
from msm_jax.parallel.sharding import constrain, ways
from msm_jax.sampler.draw import Settings, neutral

PyTree = Any
STOP_IDS = 16  # ids that end a row, at most


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes that a compiled program is made for.

    Attributes:
      groups: prompts that are held at once.
      rows: samples of each of them that are drawn at once.
      prompt: slots of a prompt.
      answer: slots of what follows it in a row.
    """

    groups: int
    rows: int
    prompt: int
    answer: int

    @property
    def batch(self) -> int:
        return self.groups * self.rows


class Int8(NamedTuple):
    """Keys or values as 8-bit integers: numbers are values * scale."""

    values: jax.Array  # int8[..., P, D]
    scale: jax.Array  # float32[..., P, 1]: each token's head has its own

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


def to_int8(x: jax.Array) -> Int8:
    """The nearest, for numbers that are finite."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis=-1, keepdims=True), 1e-20) / 127
    return Int8(jnp.round(x / scale).astype(jnp.int8), scale)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    keys_and_values: PyTree  # of each layer ([G, K, P, D], the same), arrays or `Int8`
    tokens: jax.Array  # int32[G, P]
    length: jax.Array  # int32[G], slots that are filled
    adapter: jax.Array  # int32[G], its number, from 1; 0 is the bare base
    logits: jax.Array  # float32[G, V], of the token after the last


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    keys_and_values: PyTree  # of each layer ([B, K, S, D], the same)
    length: jax.Array  # int32[B], slots that are filled
    logits: jax.Array  # float32[B, V], of the next token
    limit: jax.Array  # int32[B], tokens that may be drawn yet
    done: jax.Array  # bool[B], draws no more
    stop_ids: jax.Array  # int32[B, E], -1 where there is none
    counts: jax.Array  # int16[B, V], how often each id was drawn
    in_prompt: jax.Array  # bool[B, V]; only of rows with a repetition penalty
    settings: Settings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    prompts: Prompts
    rows: Rows


def empty_state(config: DecoderConfig, shape: Shape, stacked: bool, int8_prompts: bool = False) -> State:
    G, P, S = shape.groups, shape.prompt, shape.answer
    B, V = shape.batch, config.vocab_size

    def keys_and_values(*sizes: int, int8: bool = False) -> PyTree:
        sizes = (config.num_layers, *sizes) if stacked else sizes
        zeros = jnp.zeros(sizes, jnp.int8 if int8 else config.dtype)
        pair = (Int8(zeros, jnp.zeros((*sizes[:-1], 1), jnp.float32)) if int8 else zeros,) * 2
        return pair if stacked else [pair] * config.num_layers

    head = config.num_kv_heads, config.head_size
    prompts = Prompts(
        keys_and_values(G, head[0], P, head[1], int8=int8_prompts),
        tokens=jnp.zeros((G, P), jnp.int32),
        length=jnp.zeros(G, jnp.int32),
        adapter=jnp.zeros(G, jnp.int32),
        logits=jnp.zeros((G, V), jnp.float32),
    )
    rows = Rows(
        keys_and_values(B, head[0], S, head[1]),
        length=jnp.zeros(B, jnp.int32),
        logits=jnp.zeros((B, V), jnp.float32),
        limit=jnp.zeros(B, jnp.int32),
        done=jnp.ones(B, bool),
        stop_ids=jnp.full((B, STOP_IDS), -1, jnp.int32),
        counts=jnp.zeros((B, V), jnp.int16),
        in_prompt=jnp.zeros((B, V), bool),
        settings=neutral(B),
    )
    return State(prompts, rows)


def placed(state: State) -> State:
    """The state where a mesh has it; does nothing where none is set. Rows are split over data and fsdp, as in training,
    and so are groups, if there are enough of them; heads over tensor. What is drawn from is split by rows alone."""
    prompts, rows = state.prompts, state.rows
    groups = "batch" if len(prompts.length) % ways("batch") == 0 else None

    def kept(tree: PyTree, first: str | None) -> PyTree:
        return jax.tree.map(lambda x: constrain(x, (*(None,) * (x.ndim - 4), first, "kv_heads", None, None)), tree)

    def by(name: str | None, x: jax.Array) -> jax.Array:
        return constrain(x, (name, *(None,) * (x.ndim - 1)))

    return State(
        Prompts(
            kept(prompts.keys_and_values, groups),
            **{name: by(None, getattr(prompts, name)) for name in ("tokens", "length", "adapter", "logits")},
        ),
        dataclasses.replace(
            rows,
            keys_and_values=kept(rows.keys_and_values, "batch"),
            logits=whole_rows(rows.logits),
            counts=whole_rows(rows.counts),
            in_prompt=whole_rows(rows.in_prompt),
        ),
    )


def whole_rows(x_BV: jax.Array) -> jax.Array:
    """Split by rows over all devices, so that each draws from whole vocabularies."""
    return constrain(x_BV, ("rows", None))
