"""Parameters <-> tensors of a Hugging Face folder: one table for both directions, base and adapter alike.

Tensors are moved one at a time: into a stack of layers that lies sharded on the devices, or out of it. A host reads
only the bytes that its own devices hold.
"""

import collections
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from msm_jax.checkpoints.tensor_files import TensorFiles
from msm_jax.errors import UserError
from msm_jax.models.decoder import DecoderConfig
from msm_jax.models.linear import LORA_TARGETS, LoraConfig

PyTree = Any

_PROJECTIONS = {
    **{name: f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")},
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_ROWS_COMPARED = 4096
_WEIGHT_DTYPES = [jnp.dtype(name) for name in ("bfloat16", "float16", "float32")]
# Buffers that old files hold beside the weights; they follow from config.json.
_COMPUTED = re.compile(r".*\.rotary_emb\.inv_freq|.*\.attn\.masked_bias|.*\.attn\.bias")


class Place(NamedTuple):
    """Where a tensor belongs: the path of a parameter, the layer of its stack (None: not stacked), and whether the
    file has it the other way round, as PyTorch keeps matrices: [out, in]."""

    path: tuple[str, ...]
    layer: int | None = None
    transposed: bool = False


def base_table(decoder: DecoderConfig) -> dict[str, Place]:
    """Tensor name -> place, of every parameter of the base."""
    table = {_EMBEDDING: Place(("embedding",)), "model.norm.weight": Place(("norm", "scale"))}
    if not decoder.tied_head:
        table[_HEAD] = Place(("head", "kernel"), transposed=True)
    for layer in range(decoder.num_layers):
        prefix = f"model.layers.{layer}"
        norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
        if decoder.qk_norm:
            norms |= {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
        for ours, theirs in norms.items():
            table[f"{prefix}.{theirs}.weight"] = Place(("layers", ours, "scale"), layer)
        for ours, theirs in _PROJECTIONS.items():
            table[f"{prefix}.{theirs}.weight"] = Place(("layers", ours, "kernel"), layer, transposed=True)
            if decoder.qkv_bias and ours in ("q", "k", "v"):
                table[f"{prefix}.{theirs}.bias"] = Place(("layers", ours, "bias"), layer)
    return table


def adapter_table(decoder: DecoderConfig, lora: LoraConfig) -> dict[str, Place]:
    """Tensor name -> place, of every parameter of an adapter as the library `peft` names them."""
    return {
        f"{PEFT_PREFIX}model.layers.{layer}.{_PROJECTIONS[target]}.lora_{theirs}.weight": Place(
            ("layers", target, f"lora_{ours}"), layer, transposed=True
        )
        for layer in range(decoder.num_layers)
        for target in lora.targets
        for ours, theirs in (("a", "A"), ("b", "B"))
    }


def peft_module(target: str) -> str:
    """The name of a target in adapter_config.json: "q" -> "q_proj"."""
    return _PROJECTIONS[target].split(".")[1]


PEFT_PREFIX = "base_model.model."  # of the names of tensors
PEFT_MODULES = [_PROJECTIONS[target] for target in LORA_TARGETS]  # within a layer


def check_tensors(files: TensorFiles, table: Mapping[str, Place], shapes: PyTree) -> None:
    """Raises: UserError naming the first tensor that is missing, of no use or of the wrong shape."""
    cause = "config.json is of another model"
    if all(place.path[-1].startswith("lora_") for place in table.values()):
        cause = "the adapter is of another model, or r in adapter_config.json is wrong"
    for name, place in table.items():
        if name not in files.tensors:
            raise UserError(f"{files.url}: tensor {name} is missing; {cause}, or a file is")
        dtype = files.tensors[name].dtype
        if dtype not in _WEIGHT_DTYPES:
            raise UserError(f"{files.url}: tensor {name} is {dtype}; weights are bfloat16, float16 or float32 here")
        wanted, found = _file_shape(_leaf(shapes, place.path), place), tuple(files.tensors[name].shape)
        if found != wanted:
            raise UserError(
                f"{files.url}: tensor {name} has shape {list(found)}, and the model needs {list(wanted)}; {cause}"
            )
    for name in files.tensors:
        if name == _HEAD and name not in table:
            _check_tied(files)
        elif name not in table and not _COMPUTED.fullmatch(name):
            raise UserError(f"{files.url}: tensor {name} has no place in this model; {cause}")


def _check_tied(files: TensorFiles) -> None:
    """Some savers write the head beside the embedding that it is tied to: it must be the same."""
    rows = files.tensors[_HEAD].shape[0]
    same = files.tensors[_HEAD].shape == files.tensors[_EMBEDDING].shape
    for start in range(0, rows if same else 0, _ROWS_COMPARED):
        part = (slice(start, min(start + _ROWS_COMPARED, rows)),)
        same = same and files.read(_HEAD, part).tobytes() == files.read(_EMBEDDING, part).tobytes()
    if not same:
        raise UserError(
            f"{files.url}: {_HEAD} differs from {_EMBEDDING}, and config.json says that they are tied; "
            "set tie_word_embeddings to false there"
        )


def open_params(
    files: TensorFiles, table: Mapping[str, Place], like: PyTree, keep_dtypes: bool
) -> tuple[PyTree, Callable[[tuple[str, ...]], jax.Array]]:
    """What `table`, which `check_tensors` has passed, leads to in the tree of `like`, ShapeDtypeStructs with shardings.

    Returns: a tree of shapes and dtypes (of the files with `keep_dtypes`, else of `like`), and what reads the array at
        a path: at any time the host holds its shards and, twice, one tensor in the making. Raises a UserError for
        damaged files, and for dtypes that are kept and differ from layer to layer.
    """
    places, shapes = collections.defaultdict(list), {}
    for name, place in table.items():
        places[place.path].append((name, place))
    for path, ((first, _), *_) in places.items():
        leaf = _leaf(like, path)
        dtype = files.tensors[first].dtype if keep_dtypes else leaf.dtype
        _put(shapes, path, jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding))

    def read(path: tuple[str, ...]) -> jax.Array:
        leaf, array = _leaf(shapes, path), None
        for name, place in places[path]:
            dtype = files.tensors[name].dtype
            if keep_dtypes and dtype != leaf.dtype:
                raise UserError(
                    f"{files.url}: tensor {name} is {dtype}, and that of layer 0 is {leaf.dtype}; give them one"
                )
            value = _on_devices(files, name, place, leaf.sharding)
            value = _arrange(_layer_sharding(leaf.sharding, value.ndim, place), place.transposed, leaf.dtype)(value)
            if place.layer is not None:
                array = _zeros(leaf.shape, leaf.dtype, leaf.sharding)() if array is None else array
                value = _set_layer(leaf.sharding)(array, value, place.layer)
            # Without waiting, tensors would be read faster than they are moved, and pile up.
            array = value.block_until_ready()
        return array

    return shapes, read


def tensors_of(
    params: PyTree,
    table: Mapping[str, Place],
    read: Callable[[tuple[str, ...]], jax.Array] | None = None,
    transform: Callable[[str, jax.Array], jax.Array] | None = None,
) -> Iterator[tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]]:
    """(name, shape, dtype, function that fetches the array) of every tensor of `table`, for `write_tensors`.

    A stack's layers follow each other: each array is asked for once, and let go before the next. `read` gives the array
    at a path, if `params` has shapes and dtypes alone; `transform(name, matrix)` what is written in a matrix's place.
    """
    held: dict[tuple[str, ...], jax.Array] = {}

    def array(path: tuple[str, ...]) -> jax.Array:
        if path not in held:
            held.clear()
            held[path] = read(path) if read else _leaf(params, path)
        return held[path]

    def fetch(name: str, place: Place) -> np.ndarray:
        value = array(place.path)
        value = value if place.layer is None else value[place.layer]
        value = transform(name, value) if transform else value
        value = value.T if place.transposed else value
        if not value.is_fully_addressable:
            value = multihost_utils.process_allgather(value, tiled=True)
        return np.asarray(value)

    for name, place in sorted(table.items(), key=lambda entry: entry[1].path):
        leaf = _leaf(params, place.path)
        yield name, _file_shape(leaf, place), np.dtype(leaf.dtype), functools.partial(fetch, name, place)


def merged(
    params: PyTree,
    adapter: PyTree,
    lora: LoraConfig,
    table: Mapping[str, Place],
    read: Callable[[tuple[str, ...]], jax.Array] | None = None,
) -> Iterator:
    """`tensors_of` the base with the adapter's products added, in float32 and rounded once to the base's dtype."""

    def add(name: str, matrix: jax.Array) -> jax.Array:
        place = table[name]
        factors = _leaf(adapter, place.path[:-1])
        if place.path[-1] != "kernel" or factors is None:
            return matrix
        a, b = factors["lora_a"][place.layer], factors["lora_b"][place.layer]
        # The highest precision: a TPU multiplies float32 in bfloat16 otherwise.
        product = jnp.matmul(a, b, precision="highest")
        return (matrix.astype(jnp.float32) + lora.alpha / lora.rank * product).astype(matrix.dtype)

    return tensors_of(params, table, read, add)


def _leaf(tree: PyTree, path: tuple[str, ...]) -> Any:
    for key in path:
        if key not in tree:
            return None
        tree = tree[key]
    return tree


def _put(tree: dict, path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _file_shape(leaf: Any, place: Place) -> tuple[int, ...]:
    shape = tuple(leaf.shape if place.layer is None else leaf.shape[1:])
    return shape[::-1] if place.transposed else shape


def _layer_sharding(sharding: NamedSharding, ndim: int, place: Place) -> NamedSharding:
    """How one layer of a parameter is split; `ndim` is that of the layer."""
    stacked = place.layer is not None
    spec = (*sharding.spec, *(None,) * (ndim + stacked - len(sharding.spec)))
    return NamedSharding(sharding.mesh, PartitionSpec(*spec[stacked:]))


def _on_devices(files: TensorFiles, name: str, place: Place, sharding: NamedSharding) -> jax.Array:
    shape = tuple(files.tensors[name].shape)
    sharding = _layer_sharding(sharding, len(shape), place)
    if place.transposed:
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[::-1]))

    @functools.cache  # devices that hold the same part read it once
    def read(index: tuple[tuple[int, int], ...]) -> np.ndarray:
        return files.read(name, tuple(slice(*bounds) for bounds in index))

    def part(index: tuple[slice, ...]) -> np.ndarray:
        return read(tuple(axis.indices(size)[:2] for axis, size in zip(index, shape, strict=True)))

    return jax.make_array_from_callback(shape, sharding, part)


@functools.lru_cache(maxsize=64)
def _zeros(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> Callable[[], jax.Array]:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.lru_cache(maxsize=64)
def _arrange(sharding: NamedSharding, transposed: bool, dtype: Any) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: (x.T if transposed else x).astype(dtype), out_shardings=sharding)


@functools.lru_cache(maxsize=64)
def _set_layer(sharding: NamedSharding) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """Writes a layer into the stack in place: the stack is donated. Not transposed on the way: on a CPU the two in one
    program take four times as long as one after the other."""

    def write(stack: jax.Array, x: jax.Array, layer: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stack, x, layer, 0)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)
