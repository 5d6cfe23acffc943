"""Several adapters beside one base, so that one batch holds answers of all of them.

They lie side by side as one adapter of a larger rank: a product with all of them reads each once, whatever the rows
are that ask for them, and each row keeps its own columns of x A.

Shapes: X adapters, L layers, M inputs, F outputs, R rank of each adapter, Z = X R.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from msm_jax.errors import UserError
from msm_jax.models import LORA_TARGETS, Execution, LoraConfig, Model

PyTree = Any
RANK_AXIS = {"lora_a": -1, "lora_b": -2}


def join_adapters(base: Model, adapters: Sequence[tuple[LoraConfig, PyTree]]) -> tuple[Model, PyTree]:
    """The model and the adapters that an engine takes: matrices [M, Z] and [Z, F] of each layer (or [L, M, Z], where
    layers are stacked), in the type of the products, with the scale in the second. Columns and rows i R to (i + 1) R
    are adapter i's, zeros where its rank is lower or it has no such target. The model's `lora` is that of each."""
    rank = max(lora.rank for lora, _ in adapters)
    targets = tuple(name for name in LORA_TARGETS if any(name in lora.targets for lora, _ in adapters))
    model = dataclasses.replace(base, lora=LoraConfig(rank, float(rank), targets))
    dtype = base.config.dtype

    def filled(name: str, shape: jax.ShapeDtypeStruct, side: str, lora: LoraConfig, weights: Mapping) -> jax.Array:
        if name not in lora.targets:
            return jnp.zeros(shape.shape, dtype)
        matrix = weights["layers"][name][side]
        if side == "lora_b":
            matrix = matrix * (lora.alpha / lora.rank)
        padding = [(0, wanted - size) for wanted, size in zip(shape.shape, matrix.shape, strict=True)]
        return jnp.pad(matrix, padding).astype(dtype)

    stacked = dataclasses.replace(model, execution=dataclasses.replace(model.execution, stacked=True))
    layers = {
        name: {
            side: jnp.concatenate([filled(name, shape, side, *adapter) for adapter in adapters], RANK_AXIS[side])
            for side, shape in sides.items()
        }
        for name, sides in stacked.lora_shapes["layers"].items()
    }
    tree = {"layers": layers}
    return model, tree if model.execution.stacked else model.unstack(tree)


def count_adapters(model: Model, joined: PyTree | None) -> int:
    """How many there are in what `join_adapters` made; None: none."""
    return 0 if joined is None else jax.tree.leaves(joined)[0].shape[RANK_AXIS["lora_a"]] // model.lora.rank


def for_sampling(
    model: Model, params: PyTree, adapters: Sequence[tuple[LoraConfig, PyTree]]
) -> tuple[Model, PyTree, PyTree | None]:
    """What an engine takes, of a model as it was trained or loaded: matrices in the type of the products, once, and on
    a CPU layer by layer."""
    on_cpu = next(iter(jax.tree.leaves(params)[0].devices())).platform == "cpu"
    dtype = model.config.dtype
    execution = Execution(stacked=not on_cpu, transposed=on_cpu and dtype == "float32" and not model.int8_base)

    def cast(x: jax.Array) -> jax.Array:
        return x.astype(dtype) if x.ndim > 1 and jnp.issubdtype(x.dtype, jnp.floating) else x

    layers = {
        name: part if set(part) <= {"scale"} else part | {"kernel": cast(part["kernel"])}
        for name, part in params["layers"].items()
    } if model.execution.stacked else params["layers"]  # fmt: skip
    params = {name: part if name in ("layers", "norm") else jax.tree.map(cast, part) for name, part in params.items()}
    params["layers"] = layers
    base = dataclasses.replace(model, lora=None, execution=execution)
    if model.execution.stacked and not execution.stacked:
        params = base.unstack(params)
    if execution.transposed and not model.execution.transposed:
        params = jax.tree_util.tree_map_with_path(lambda path, x: x.T if path[-1].key == "kernel" else x, params)
    if not adapters:
        return base, params, None
    model, joined = join_adapters(base, adapters)
    return model, params, joined


def check_adapter(lora: LoraConfig, weights: PyTree, base: Model, name: str) -> None:
    """Raises: UserError naming the matrix that does not fit the base, or that no module of it has."""
    shapes = dataclasses.replace(
        base, lora=lora, execution=dataclasses.replace(base.execution, stacked=True)
    ).lora_shapes
    wanted = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in _leaves(shapes)}
    found = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in _leaves(weights)}
    if extra := sorted(found.keys() - wanted.keys()):
        raise UserError(f"adapter {name}: {extra[0]} is of no module of this model")
    if missing := sorted(wanted.keys() - found.keys()):
        raise UserError(f"adapter {name}: {missing[0]} is missing")
    for path, shape in wanted.items():
        if found[path] != shape:
            raise UserError(f"adapter {name}: {path} is {list(found[path])}, and this model needs {list(shape)}")


def _leaves(tree: PyTree):
    return jax.tree_util.tree_leaves_with_path(tree)


def split_adapters(given: Any) -> Mapping[str, str]:
    """NAME=DIR, several of them with commas or in a list; DIR alone is called as its folder -> folders by name.

    Raises: UserError if two have one name.
    """
    found: dict[str, str] = {}
    parts = given.split(",") if isinstance(given, str) else list(given or ())
    for part in parts:
        name, equals, folder = str(part).partition("=")
        if not equals:
            name, folder = pathlib.PurePath(name).name, name
        if name in found:
            raise UserError(f"adapter: two are called {name!r}; name them as NAME=DIR")
        found[name] = folder
    return found
