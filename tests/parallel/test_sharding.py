"""Meshes that fit, shardings that divide, and the words of the errors where they do not."""

import collections
import types

import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from msm_jax.errors import UserError
from msm_jax.models import DecoderConfig, LoraConfig, Model
from msm_jax.parallel import batch_sharding, make_mesh, param_shardings, sampling_mesh
from msm_jax.parallel.sharding import MESH_AXES

MODEL = Model(
    DecoderConfig(vocab_size=30, num_layers=2, width=8, mlp_width=12, num_heads=2, num_kv_heads=1, head_size=4),
    LoraConfig(rank=3),
)


def mesh_of(data, fsdp, tensor):
    """Needs no devices."""
    return AbstractMesh((data, fsdp, tensor), MESH_AXES)


def test_a_mesh_has_all_axes():
    # Eight devices are tested with the step (tests/train/test_mesh.py).
    assert dict(make_mesh({"data": 1, "fsdp": -1, "tensor": 1}, jax.devices()[:1]).shape) == dict.fromkeys(MESH_AXES, 1)
    with pytest.raises(UserError, match="mesh {'data': 1, 'model': 1}: data, fsdp, tensor are the axes, and each"):
        make_mesh({"data": 1, "model": 1}, jax.devices()[:1])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), "data=3 x fsdp=1 x tensor=1 does not fit 8 devices: mesh.data=3 must divide their number"),
        ((2, 2, 1), "data=2 x fsdp=2 x tensor=1 does not fit 8 devices; set one of mesh.data, mesh.fsdp to -1"),
        ((-1, 16, 1), "data=-1 x fsdp=16 x tensor=1 does not fit 8 devices: mesh.fsdp=16 must"),
        ((-1, 2, 3), "mesh.fsdp=2 x mesh.tensor=3 must divide"),
        ((-1, -1, 1), "data=-1 x fsdp=-1 x tensor=1: sizes are positive, and only one may be -1"),
        ((8, 1, 0), "data=8 x fsdp=1 x tensor=0: sizes are positive"),
        ((-2, 1, 1), "data=-2 x fsdp=1 x tensor=1: sizes are positive"),
    ],
)
def test_impossible_meshes_say_their_numbers(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(dict(zip(MESH_AXES, sizes, strict=True)), jax.devices()[:1] * 8)


def test_weights_are_split_over_fsdp_and_tensor():
    specs = jax.tree.map(lambda sharding: sharding.spec, param_shardings(MODEL.axes, MODEL.shapes, mesh_of(2, 4, 2)))
    assert specs["embedding"] == PartitionSpec("tensor", "fsdp")
    assert specs["head"]["kernel"] == PartitionSpec("fsdp", "tensor")
    assert specs["norm"]["scale"] == PartitionSpec(None)
    layers = specs["layers"]
    assert layers["q"]["kernel"] == layers["up"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert layers["o"]["kernel"] == layers["down"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")
    adapter = param_shardings(MODEL.lora_axes, MODEL.lora_shapes, mesh_of(2, 2, 2))["layers"]["down"]
    assert adapter["lora_a"].spec == PartitionSpec(None, ("tensor", "fsdp"), None)
    assert adapter["lora_b"].spec == PartitionSpec(None, None, "fsdp")


@pytest.mark.parametrize(
    ("fsdp", "tensor", "message"),
    [
        (1, 4, "embedding: vocab axis of 30 is not divisible by mesh.tensor=4"),
        (16, 1, "embedding: embed axis of 8 is not divisible by mesh.fsdp=16"),
        (1, 5, "layers/down/kernel: mlp axis of 12 is not divisible by mesh.tensor=5"),
        (4, 2, "layers/down/lora_a: wide axis of 12 is not divisible by mesh.tensor=2 x mesh.fsdp=4"),
    ],
)
def test_sizes_that_a_mesh_does_not_divide_are_named(fsdp, tensor, message):
    mesh = mesh_of(1, fsdp, tensor)
    with pytest.raises(UserError, match=message):
        param_shardings(MODEL.axes, MODEL.shapes, mesh)
        param_shardings(MODEL.lora_axes, MODEL.lora_shapes, mesh)


def test_rows_are_split_over_data_and_fsdp():
    mesh = mesh_of(2, 4, 2)
    assert batch_sharding(mesh).shard_shape((16, 7)) == (2, 7)
    assert batch_sharding(mesh, leading=1).shard_shape((3, 16, 7)) == (3, 2, 7)
    assert batch_sharding(mesh, leading=1).shard_shape((3, 16)) == (3, 2)


@pytest.mark.parametrize(
    ("kind", "gigabytes", "heads", "width", "devices", "slices", "expected"),
    [
        ("cpu", 65, 8, 5120, 8, 1, (1, 1, 8)), ("cpu", 65, 8, 5120, 16, 1, (1, 2, 8)),
        ("cpu", 65, 8, 5120, 4, 1, (1, 1, 4)), ("cpu", 1, 3, 576, 8, 1, (1, 8, 1)), ("cpu", 1, 3, 577, 8, 1, (8, 1, 1)),
        ("cpu", 65, 8, 5120, 32, 2, (2, 2, 8)), ("cpu", 1, 1, 16, 1, 1, (1, 1, 1)),
        # A chip of v5e has 16.9 GB: weights of 65 GB fill half of 8 chips, and those of 140 GB all of them.
        ("TPU v5 lite", 65, 8, 5120, 16, 1, (2, 1, 8)), ("TPU v5 lite", 140, 8, 5120, 16, 1, (1, 2, 8)),
        ("TPU v5 lite", 140, 8, 5120, 32, 1, (2, 2, 8)), ("TPU v5 lite", 65, 8, 5120, 32, 2, (4, 1, 8)),
        ("TPU v5 lite", 1000, 8, 5120, 32, 1, (1, 4, 8)), ("TPU v6 lite", 65, 8, 5120, 4, 1, (1, 1, 4)),
    ],
)  # fmt: skip
def test_for_sampling_heads_are_divided_first_and_the_rest_are_copies_if_there_is_room(
    kind, gigabytes, heads, width, devices, slices, expected
):
    Device = collections.namedtuple("Device", ("slice_index", "device_kind"))
    sizes = types.SimpleNamespace(num_kv_heads=heads, mlp_width=2**15, vocab_size=151_936, width=width)
    found = sampling_mesh(sizes, gigabytes * 1e9, [Device(k * slices // devices, kind) for k in range(devices)])
    assert (found["data"], found["fsdp"], found["tensor"]) == expected
