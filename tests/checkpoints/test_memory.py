"""The memory of the host that reading, writing, importing and exporting take, each in a process of its own."""

import math
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from msm_jax.checkpoints import weights
from msm_jax.checkpoints.orbax import save_params
from msm_jax.models import DecoderConfig, LoraConfig, Model, count_parameters
from tests.memory import write_model

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
SIZES = {"num_heads": 4, "num_kv_heads": 4, "head_size": 128, "tied_head": True}
SMALL = DecoderConfig(vocab_size=64, num_layers=2, width=512, mlp_width=64, **SIZES)
FILES = """
import sys
import numpy as np
from msm_jax.checkpoints.tensor_files import TensorFiles, write_tensors
from tests.memory import peak_of

folder, shape = sys.argv[1], (4096, 4096)  # 32 MiB of float16

def write():
    make = lambda: np.ones(shape[::-1], np.float16).T
    write_tensors(folder, [(f"layer.{i}", shape, np.float16, make) for i in range(8)], max_shard_bytes=100 * 2**20)

def read():
    files = TensorFiles(folder)
    for name in files.tensors:
        part = files.read(name, (slice(0, 4096), slice(0, 1024)))
        assert part.shape == (4096, 1024) and (part == 1).all()

print(peak_of(write), peak_of(read))
"""
LOAD = """
import sys
from msm_jax.checkpoints import weights
from msm_jax.parallel import make_mesh
from tests.memory import peak_of

mesh = make_mesh({"data": 1, "fsdp": 2, "tensor": 2})
small, big = (weights.open_model(f"{sys.argv[1]}/{size}/hf") for size in ("small", "big"))
weights.load(small, mesh)  # so that the runtime has what it needs
print(peak_of(lambda: weights.load(big, mesh, dtype=None)))
"""
CONVERT = """
import sys
from msm_jax.checkpoints import conversion
from tests.memory import peak_of

calls = [
    lambda folder: conversion.import_model(f"{folder}/hf", f"{folder}/ours"),
    lambda folder: conversion.export_model(f"{folder}/ours", f"{folder}/exported"),
    lambda folder: conversion.export_model(f"{folder}/adapter", f"{folder}/merged", merge=True),
    lambda folder: conversion.export_model(f"{folder}/adapter_on_hf", f"{folder}/merged_on_hf", merge=True),
]
for call in calls:
    call(sys.argv[1] + "/small")
print(*(peak_of(lambda: call(sys.argv[1] + "/big")) for call in calls))
"""


def measured(script, folder, devices=4):
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PATH": "/usr/bin:/bin"}
    command, root = [sys.executable, "-c", script, str(folder)], pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    shutil.rmtree(folder / "big", ignore_errors=True)
    assert done.returncode == 0, done.stderr
    return map(int, done.stdout.split())


def test_files_take_a_tensor_and_a_chunk(tmp_path):
    """256 MiB of tensors go through the memory of one and a chunk; of parts, through that of a part and a chunk."""
    written, read = measured(FILES, tmp_path)
    assert written < (32 + 64 + 16) * 2**20 and read < (2 * 8 + 8 + 16) * 2**20


def test_loading_takes_the_shards_and_two_tensors(tmp_path):
    """A stack of layers is 80 MiB here, so one that is built on the host first would be seen."""
    big = DecoderConfig(vocab_size=32768, num_layers=10, width=512, mlp_width=4096, **SIZES)
    for name, decoder in {"small": SMALL, "big": big}.items():
        write_model(tmp_path / name / "hf", decoder)
    [peak] = measured(LOAD, tmp_path)
    shards, largest = 4 * count_parameters(Model(big).shapes), 4 * 32768 * 512
    assert shards <= peak <= shards + 2 * largest


@pytest.mark.slow  # the test above has the reading half of it
def test_conversion_takes_the_shards_and_two_tensors(tmp_path):
    """Import holds all shards once. Export holds a stack of layers at a time, twice while it reads it."""
    big, lora = DecoderConfig(vocab_size=32768, num_layers=6, width=512, mlp_width=4096, **SIZES), LoraConfig(64, 2.0)
    for name, decoder in {"small": SMALL, "big": big}.items():
        write_model(tmp_path / name / "hf", decoder)
        for adapter, base in {"adapter": "ours", "adapter_on_hf": "hf"}.items():
            folder, model = tmp_path / name / adapter, Model(decoder, lora)
            folder.mkdir()
            save_params(folder / "final", jax.tree.map(lambda x: jnp.ones(x.shape), model.lora_shapes))
            weights.write_description(folder, model, base=str(tmp_path / name / base))
    imported, exported, *merged = measured(CONVERT, tmp_path)
    shards = 4 * count_parameters(Model(big).shapes)
    stack, largest = (4 * math.prod(shape) for shape in ((6, 512, 4096), (32768, 512)))
    assert shards <= imported <= shards + 2 * largest
    assert stack <= exported <= shards + 2 * largest
    shards += 4 * count_parameters(Model(big, lora).lora_shapes)
    for peak in merged:  # over a base of ours, and over one of Hugging Face
        assert stack <= peak <= shards + 2 * largest
