"""A base in 8-bit integers computes what its rounded weights say, near to what the weights were."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msm_jax.models import DecoderConfig, LoraConfig, Model, quantize

CONFIG = DecoderConfig(
    vocab_size=24, num_layers=2, width=16, mlp_width=24, num_heads=4, num_kv_heads=2, head_size=8, qkv_bias=True,
    dtype="float32",
)  # fmt: skip
MODEL = Model(CONFIG, LoraConfig(rank=2, alpha=4.0), int8_base=True)
PLAIN = dataclasses.replace(MODEL, int8_base=False)


@pytest.fixture
def params(random_tree):
    return jax.tree.map(jnp.asarray, random_tree(PLAIN.shapes))


def rounded(quantized):
    """The same base with the rounded matrices as float32."""
    layers = {}
    for name, part in quantized["layers"].items():
        part = dict(part)
        if "kernel_scale" in part:
            part["kernel"] = part["kernel"].astype(jnp.float32) * part.pop("kernel_scale")[:, None]
        layers[name] = part
    return quantized | {"layers": layers}


def test_shapes_and_types_are_those_of_the_model_and_what_is_read_is_freed(params):
    kernel = params["layers"]["q"]["kernel"]
    kinds = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), quantize(params))
    assert kernel.is_deleted()
    assert kinds == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), MODEL.shapes)
    ranks = jax.tree.map(len, MODEL.axes, is_leaf=lambda x: isinstance(x, tuple))
    assert ranks == jax.tree.map(lambda leaf: leaf.ndim, MODEL.shapes)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.floats(1e-6, 1e3), st.sampled_from([1, 4]))
def test_rounding_is_of_half_a_step_of_each_output(seed, spread, outputs):
    kernel = np.random.default_rng(seed).standard_normal((2, 7, outputs)).astype(np.float32) * np.float32(spread)
    kernel[1, :, 0] = 0  # an output without weights
    part = quantize({"layers": {"q": {"kernel": jnp.asarray(kernel)}}})["layers"]["q"]
    steps = np.abs(kernel).max(axis=1) / 127
    back = np.asarray(part["kernel"]) * np.asarray(part["kernel_scale"])[:, None]
    assert (np.abs(back - kernel) <= 0.501 * steps[:, None] + 1e-30).all()
    assert np.abs(part["kernel"]).max() == (127 if kernel.any() else 0)


def test_logits_and_gradients_are_those_of_the_rounded_base(params, random_tree):
    tokens = np.random.default_rng(0).integers(0, 24, (2, 6)).astype(np.int32)
    rows = tokens, np.ones_like(tokens), np.tile(np.arange(6, dtype=np.int32), (2, 1))
    adapter = random_tree(MODEL.lora_shapes)

    def results(model, base):
        def loss(adapter):
            logits = model.apply(base, adapter, *rows)
            return jnp.sin(logits).sum(), logits

        both = jax.jit(lambda adapter: (*jax.grad(loss, has_aux=True)(adapter), model.apply(base, None, *rows)))
        return both(adapter)

    before = jax.jit(PLAIN.apply)(params, adapter, *rows)
    integers = quantize(params)
    found, expected = results(MODEL, integers), results(PLAIN, rounded(integers))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)
    assert 0 < np.linalg.norm(found[1] - before) < 0.05 * np.linalg.norm(before)
