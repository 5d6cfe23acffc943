"""Shapes, names and adapters of a model."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from msm_jax.errors import UserError
from msm_jax.models import LORA_TARGETS, DecoderConfig, LoraConfig, Model, count_parameters

# The compiler is what these tests wait for, so it is told not to polish.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

TINY = DecoderConfig(
    vocab_size=13, num_layers=2, width=12, mlp_width=20, num_heads=4, num_kv_heads=2, head_size=6, dtype="float32"
)
LLAMA_8B = DecoderConfig(
    vocab_size=128_256, num_layers=32, width=4096, mlp_width=14_336, num_heads=32, num_kv_heads=8, head_size=128
)
QWEN_14B = DecoderConfig(
    vocab_size=152_064, num_layers=48, width=5120, mlp_width=13_824, num_heads=40, num_kv_heads=8, head_size=128
)
QWEN_32B = dataclasses.replace(QWEN_14B, num_layers=64, mlp_width=27_648)


def test_large_models_and_their_adapters_of_rank_64_have_their_known_sizes():
    for config, adapter in ((LLAMA_8B, 167_772_160), (QWEN_14B, 275_251_200), (QWEN_32B, 536_870_912)):
        shapes = Model(config, LoraConfig(rank=64)).lora_shapes
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes)), "nothing is allocated"
        assert count_parameters(shapes) == adapter
    assert count_parameters(Model(LLAMA_8B).shapes) == 8_030_261_248
    head = LLAMA_8B.width * LLAMA_8B.vocab_size
    assert count_parameters(Model(dataclasses.replace(LLAMA_8B, tied_head=True)).shapes) == 8_030_261_248 - head


def test_every_axis_of_every_parameter_has_a_name():
    model = Model(TINY, LoraConfig(rank=3))
    for axes, shapes in ((model.axes, model.shapes), (model.lora_axes, model.lora_shapes)):
        ranks = jax.tree.map(lambda leaf: len(leaf.shape), shapes)
        assert jax.tree.map(len, axes, is_leaf=lambda leaf: isinstance(leaf, tuple)) == ranks
    assert model.axes["layers"]["down"]["kernel"] == ("layers", "mlp", "embed")
    assert model.lora_axes["layers"]["down"]["lora_a"] == ("layers", "wide", "rank")
    assert model.lora_axes["layers"]["down"]["lora_b"] == ("layers", "rank", "embed")
    assert model.axes["layers"]["mlp_norm"]["scale"] == ("layers", "norm")
    assert model.axes["embedding"] == ("vocab", "embed")


def test_only_targeted_layers_have_adapters():
    model = Model(TINY, LoraConfig(rank=3, targets=("k", "down")))
    shapes = jax.tree.map(lambda leaf: leaf.shape, model.lora_shapes)
    assert shapes == {
        "layers": {
            "k": {"lora_a": (2, 12, 3), "lora_b": (2, 3, 12)},
            "down": {"lora_a": (2, 20, 3), "lora_b": (2, 3, 12)},
        }
    }
    assert model.shapes == Model(TINY).shapes, "the base is the same with and without an adapter"


@pytest.fixture(scope="module")
def adapted():
    return Model(TINY, LoraConfig(rank=3, alpha=6.0))


@pytest.fixture(scope="module")
def logits(adapted, packed):
    return jit(lambda params, lora: adapted.apply(params, lora, *packed))


def test_a_fresh_model_and_its_adapter(adapted, logits):
    """Shapes as promised, layers and products not alike, B zero: the adapter starts as nothing."""
    params, lora = jit(lambda key: (adapted.init(key), adapted.init_lora(key)))(jax.random.key(0))
    of = jax.ShapeDtypeStruct
    assert jax.tree.map(lambda leaf: of(leaf.shape, leaf.dtype), params) == adapted.shapes
    assert jax.tree.map(lambda leaf: of(leaf.shape, leaf.dtype), lora) == adapted.lora_shapes
    for linear in LORA_TARGETS:
        a, b = lora["layers"][linear]["lora_a"], lora["layers"][linear]["lora_b"]
        assert not np.any(b)
        assert np.all(np.std(a, axis=(1, 2)) > 0.1) and not np.array_equal(a[0], a[1])
        kernel = params["layers"][linear]["kernel"]
        np.testing.assert_allclose(np.var(kernel) * kernel.shape[1], 1, rtol=0.3)
        assert not np.array_equal(kernel[0], kernel[1])
    np.testing.assert_array_equal(logits(params, lora), logits(params, None))


def test_an_adapter_is_the_scaled_product_added_to_its_weights(adapted, logits, random_tree):
    params, lora = random_tree(adapted.shapes), random_tree(adapted.lora_shapes, seed=1)
    merged = jax.tree.map(np.copy, params)
    for linear, ab in lora["layers"].items():
        merged["layers"][linear]["kernel"] += (6.0 / 3) * ab["lora_a"] @ ab["lora_b"]
    adapted_logits = logits(params, lora)
    assert np.abs(adapted_logits - logits(params, None)).max() > 1
    np.testing.assert_allclose(adapted_logits, logits(merged, None), rtol=1e-3, atol=1e-3)


def test_equal_models_are_equal_keys():
    assert hash(Model(TINY, LoraConfig())) == hash(Model(dataclasses.replace(TINY), LoraConfig()))
    assert Model(TINY) != Model(TINY, LoraConfig())


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (TINY, {"num_kv_heads": 3}, "model.num_heads=4 is not a multiple of model.num_kv_heads=3"),
        (TINY, {"head_size": 5}, "model.head_size=5 is odd"),
        (TINY, {"dtype": "float31"}, "model.dtype='float31': choose "),
        (LoraConfig(), {"targets": ("q", "query")}, "lora.targets query: choose from q, k, "),
        (LoraConfig(), {"rank": 0}, "lora.rank=0"),
    ],
)
def test_impossible_models(config, changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, **changes)
