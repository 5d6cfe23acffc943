"""Devices -> mesh -> shardings. One table says which mesh axes each logical axis is split over."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from msm_jax.errors import UserError
from msm_jax.parallel.chips import all_devices, chip_of

PyTree = Any

MESH_AXES = ("data", "fsdp", "tensor")

# Rows are split over data and fsdp; weights over fsdp (gathered when used) and tensor (used where they lie). Each
# matrix of the base has an axis "embed"; of an adapter's, half have none, and their "wide" axis is split over both.
RULES: dict[str | None, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "copy_batch": "data",  # rows of one copy of the weights
    "rows": MESH_AXES,  # of which each device has its own
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "wide": ("tensor", "fsdp"),
    "layers": None,
    "norm": None,
    "rank": None,
    None: None,
}


_WEIGHTS = 0.6  # part of a chip's memory that weights may fill beside what a sampler holds of prompts and rows


class Sizes(Protocol):
    """Of a decoder, those that a mesh divides."""

    num_kv_heads: int
    mlp_width: int
    vocab_size: int
    width: int


def sampling_mesh(sizes: Sizes, weight_bytes: float, devices: Sequence[jax.Device] | None = None) -> dict[str, int]:
    """Sizes of a mesh over `devices` (default: all there are) that suits sampling weights of `weight_bytes` in all.

    First as many ways of heads as there can be: then a step reads each weight once, and sends activations alone. What
    is left are copies of the weights, each with its share of the rows, if they fill no more than `_WEIGHTS` of a chip's
    memory; if they do, ways of width, whose weights every step has to gather. Of several TPU slices each has copies of
    its own. Where the memory is not that of a known chip (CPU devices share theirs) a slice has one copy.
    """
    devices = list(all_devices() if devices is None else devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    own = len(devices) // slices
    tensor = math.gcd(sizes.num_kv_heads, sizes.mlp_width, sizes.vocab_size, own)
    most, chip = math.gcd(sizes.width, own // tensor), chip_of(devices[0].device_kind)
    room = _WEIGHTS * chip.memory if chip else 0
    fsdp = next((ways for ways in range(1, most) if most % ways == 0 and weight_bytes <= tensor * ways * room), most)
    return {"data": slices * (own // tensor // fsdp), "fsdp": fsdp, "tensor": tensor}


def make_mesh(shape: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh of data x fsdp x tensor over `devices` (default: all there are). One axis may be -1: what is left.

    Of several TPU slices the data axis alone goes from one to another: what it sends is gradients, once a step, over a
    network that is a hundred times slower than the links of a slice.

    Raises: UserError if the sizes do not multiply to the number of devices, or there are no devices.
    """
    if set(shape) != set(MESH_AXES) or not all(isinstance(size, int) for size in shape.values()):
        raise UserError(f"mesh {dict(shape)}: {', '.join(MESH_AXES)} are the axes, and each needs a whole number or -1")
    devices = list(all_devices() if devices is None else devices)
    sizes = [shape[axis] for axis in MESH_AXES]
    text = " x ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh {text}: sizes are positive, and only one may be -1 (all remaining devices)")
    known = math.prod(size for size in sizes if size != -1)
    if len(devices) % known:
        given = " x ".join(f"mesh.{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True) if size > 1)
        raise UserError(f"mesh {text} does not fit {len(devices)} devices: {given} must divide their number; change it")
    if -1 not in sizes and known != len(devices):
        raise UserError(f"mesh {text} does not fit {len(devices)} devices; set one of mesh.data, mesh.fsdp to -1")
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    axis_types = (AxisType.Auto,) * len(sizes)
    slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
    if slices == 1:
        return jax.make_mesh(sizes, MESH_AXES, devices=devices, axis_types=axis_types)
    if sizes[0] % slices:
        raise UserError(
            f"mesh {text} on {slices} slices: each holds whole copies of the weights, so mesh.data={sizes[0]} must be "
            f"a multiple of {slices}; set mesh.data={slices} and mesh.fsdp=-1"
        )
    within = (sizes[0] // slices, *sizes[1:])
    arranged = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices=devices)
    return Mesh(arranged, MESH_AXES, axis_types=axis_types)


def check_heads(mesh: Mesh, num_kv_heads: int) -> None:
    """Raises: UserError if the mesh would cut a head in two."""
    if num_kv_heads % mesh.shape["tensor"]:
        raise UserError(
            f"mesh.tensor={mesh.shape['tensor']} does not divide the model's {num_kv_heads} key heads; set mesh.tensor="
            f"{math.gcd(num_kv_heads, mesh.shape['tensor'])} mesh.data=1 mesh.fsdp=-1"
        )


def partition_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    return PartitionSpec(*(RULES[axis] for axis in axes))


def param_shardings(axes: PyTree, shapes: PyTree, mesh: Mesh) -> PyTree:
    """NamedSharding for each parameter, of trees of logical names (`Model.axes`) and of arrays or ShapeDtypeStructs.

    Raises: UserError naming the parameter whose size the mesh does not divide.
    """

    def sharding(path, names, leaf) -> NamedSharding:
        spec = partition_spec(names)
        for size, name, axis in zip(leaf.shape, names, spec, strict=True):
            over = (axis,) if isinstance(axis, str) else axis or ()
            ways = math.prod(mesh.shape[axis] for axis in over)
            if size % ways:
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                sizes = " x ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in over)
                raise UserError(
                    f"{where}: {name} axis of {size} is not divisible by {sizes}; set mesh.{over[-1]} to a divisor of "
                    f"it, as {math.gcd(size, mesh.shape[over[-1]])}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, axes, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Rows over data and fsdp, after `leading` axes that are not split (the accumulation axis)."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Pins an activation's layout under `jax.set_mesh`; does nothing where no mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def ways(axis: str) -> int:
    """In how many parts the mesh of `jax.set_mesh` splits a logical axis; 1 where none is set."""
    mesh, over = jax.sharding.get_abstract_mesh(), RULES[axis]
    return (
        1 if mesh.empty else math.prod(mesh.shape[name] for name in ((over,) if isinstance(over, str) else over or ()))
    )
