"""The memory of the host that import and export take."""

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

SIZES = {"num_heads": 4, "num_kv_heads": 4, "head_size": 128, "tied_head": True}
SMALL = DecoderConfig(vocab_size=64, num_layers=2, width=512, mlp_width=64, **SIZES)
BIG = DecoderConfig(vocab_size=32768, num_layers=6, width=512, mlp_width=4096, **SIZES)
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
    call(sys.argv[1] + "/small")  # so that the runtime has what it needs
print(*(peak_of(lambda: call(sys.argv[1] + "/big")) for call in calls))
"""


def write_adapter(folder, decoder, base):
    folder.mkdir()
    model = Model(decoder, LoraConfig(64, 2.0))
    save_params(folder / "final", jax.tree.map(lambda x: jnp.ones(x.shape), model.lora_shapes))
    weights.write_description(folder, model, base=base)


@pytest.mark.slow  # tests/checkpoints/test_huggingface.py has the reading half of it
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_host_memory_is_that_of_the_shards_and_two_tensors(tmp_path):
    """Import holds all shards once. Export holds a stack of layers at a time, twice while it reads it."""
    for name, decoder in {"small": SMALL, "big": BIG}.items():
        write_model(tmp_path / name / "hf", decoder)
        write_adapter(tmp_path / name / "adapter", decoder, base=str(tmp_path / name / "ours"))
        write_adapter(tmp_path / name / "adapter_on_hf", decoder, base=str(tmp_path / name / "hf"))
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4", "PATH": "/usr/bin:/bin"}
    command, root = [sys.executable, "-c", CONVERT, str(tmp_path)], pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported, exported, *merged = map(int, done.stdout.split())
    shards = 4 * count_parameters(Model(BIG).shapes)
    stack, largest = (4 * math.prod(shape) for shape in ((6, 512, 4096), (32768, 512)))
    assert shards <= imported <= shards + 2 * largest
    assert stack <= exported <= shards + 2 * largest
    shards += 4 * count_parameters(Model(BIG, LoraConfig(64)).lora_shapes)
    for peak in merged:  # over a base of ours, and over one of Hugging Face
        assert stack <= peak <= shards + 2 * largest
    shutil.rmtree(tmp_path / "big")
