"""How much memory a call takes, measured by a process of its own; and models that are large enough to see it."""

import ctypes
import json

import numpy as np

from msm_jax.checkpoints.families import config_of
from msm_jax.checkpoints.huggingface import base_table
from msm_jax.checkpoints.tensor_files import write_tensors
from msm_jax.models import Model


def write_model(folder, decoder):
    """A folder as Hugging Face has it, in float32, of numbers that cannot be compressed."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0).random
    shapes, tensors = Model(decoder).shapes, []
    for name, place in base_table(decoder).items():
        leaf = shapes
        for key in place.path:
            leaf = leaf[key]
        shape = leaf.shape if place.layer is None else leaf.shape[1:]
        shape = shape[::-1] if place.transposed else shape
        tensors.append((name, shape, np.float32, lambda shape=shape: random(shape, np.float32)))
    write_tensors(folder, tensors)
    (folder / "config.json").write_text(json.dumps(config_of(decoder)))


def peak_of(call):
    """Most bytes that this process holds during the call, above those that it held before. On Linux with glibc."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or what earlier calls gave back would be used again, and not be seen
    before = _memory("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak counts from here
    result = call()
    peak = _memory("VmHWM") - before
    del result
    return peak


def _memory(field):
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024
