"""Adapters that are added to their matrices give what adapters beside them give, and only where that is right."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm_jax.models import DecoderConfig, Execution, LoraConfig, Model, linear

CONFIG = DecoderConfig(
    vocab_size=16, num_layers=2, width=8, mlp_width=12, num_heads=2, num_kv_heads=1, head_size=4, dtype="float32"
)
LORA = LoraConfig(rank=3, alpha=6.0)
MERGED = Execution(merge_adapters=True)


@pytest.fixture
def merges(monkeypatch):
    """Shapes of the matrices that adapters were added to."""
    seen, products = [], linear._merged_products

    def noted(x, kernels, firsts, seconds):
        seen.extend(kernel.shape for kernel in kernels)
        return products(x, kernels, firsts, seconds)

    monkeypatch.setattr(linear, "_merged_products", noted)
    return seen


def results(model, tokens):
    """Loss and gradients of an adapter that does much."""
    params = Model(model.config).init(jax.random.key(0))
    lora = model.init_lora(jax.random.key(1))
    lora = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), lora)
    ids, positions = jnp.ones(tokens.shape, jnp.int32), jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    weights = jnp.ones(tokens.shape, jnp.float32)

    def loss(lora):
        return model.loss(params, lora, tokens, ids, positions, jnp.roll(tokens, -1, 1), weights)[0]

    return jax.value_and_grad(loss)(lora)


def tokens_of(rows, length):
    return jax.random.randint(jax.random.key(2), (rows, length), 0, 16)


@pytest.mark.parametrize("targets", [linear.LORA_TARGETS, ("q", "v", "up", "down")])
@pytest.mark.parametrize("bias", [False, True])
def test_merged_products_give_the_same_loss_and_gradients(merges, targets, bias):
    """Also where a group of layers (q, k, v) has adapters in part: it stays as it is."""
    config = dataclasses.replace(CONFIG, qkv_bias=bias)
    lora = dataclasses.replace(LORA, targets=targets)
    tokens = tokens_of(2, 20)
    expected = results(Model(config, lora), tokens)
    assert not merges
    found = results(Model(config, lora, MERGED), tokens)
    shapes = {(8, 8), (8, 4), (8, 12), (12, 8)} if targets == linear.LORA_TARGETS else {(12, 8)}
    assert set(merges) == shapes
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected[1])) > 0.1


def test_bfloat16_is_never_merged(merges):
    """It would round most of an adapter away."""
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    tokens = tokens_of(2, 20)
    jax.tree.map(
        np.testing.assert_array_equal,
        results(Model(config, LORA, MERGED), tokens),
        results(Model(config, LORA), tokens),
    )
    assert not merges


def test_few_rows_are_not_merged(merges):
    """As those of a sampler's steps: a product of two adapter matrices would be more work than two thin products."""
    results(Model(CONFIG, LORA, MERGED), tokens_of(1, 3))
    assert not merges


def test_a_cpu_merges():
    assert Execution().on("cpu").merge_adapters
    assert not Execution().on("tpu").merge_adapters
