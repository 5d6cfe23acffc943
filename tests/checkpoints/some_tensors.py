"""Arrays for safetensors files."""

import ml_dtypes
import numpy as np

BF16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [BF16, np.dtype(np.float16), np.dtype(np.float32)]


def given(arrays):
    """What `write_tensors` takes."""
    return [(name, array.shape, array.dtype, lambda array=array: array) for name, array in arrays.items()]


def some_arrays(dtypes=FLOATS):
    draw = np.random.default_rng(0)
    return {
        f"model.layers.{i}.weight": draw.standard_normal((i + 2, 7, 3)).astype(dtype) for i, dtype in enumerate(dtypes)
    }


def same(got, wanted):
    return got.dtype == wanted.dtype and got.shape == wanted.shape and got.tobytes() == wanted.tobytes()
