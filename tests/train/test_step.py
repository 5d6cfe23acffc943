"""The training step on one device: what an update is, and what it leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msm_jax.models import DecoderConfig, LoraConfig, Model
from msm_jax.parallel import make_mesh
from msm_jax.train.optimizer import OptimizerConfig, make_schedule
from msm_jax.train.step import _jit_step, init_state, make_train_step

STEPS, ROWS, TOKENS, VOCABULARY = 10, 4, 8, 11

DECODER = DecoderConfig(
    vocab_size=VOCABULARY, num_layers=2, width=8, mlp_width=12, num_heads=2, num_kv_heads=1, head_size=4,
    dtype="float32",
)  # fmt: skip
FULL = Model(DECODER)
# The adapter's base is held in bfloat16, as large ones are.
ADAPTED = Model(dataclasses.replace(DECODER, dtype="bfloat16"), LoraConfig(rank=2, targets=("q", "down")))
# A large epsilon makes the update a smooth function of the gradient, which rounding cannot turn around.
OPTIMIZER = OptimizerConfig(learning_rate=0.1, warmup_fraction=0.3, epsilon=1e-2, clip_norm=0.5)


def random_like(shapes, seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), dtype), shapes)


def make_batch(mask, seed=0):
    """One microbatch of `mask`'s rows. Each has two segments and one token of padding."""
    rng = np.random.default_rng(seed)
    segments = np.tile(np.int32([1, 1, 1, 2, 2, 2, 2, 0]), (ROWS, 1))
    return {
        "tokens": rng.integers(1, VOCABULARY, (1, ROWS, TOKENS)).astype(np.int32),
        "segments": segments[None],
        "positions": np.tile(np.int32([0, 1, 2, 0, 1, 2, 3, 0]), (1, ROWS, 1)),
        "mask": (mask & (segments > 0))[None],
        "source": np.int32([[0, 2, 2, 0]]),
    }


def uneven_mask():
    """Rows of 5, 1, 0 and 2 targets: a mean of means would not be the mean."""
    mask = np.zeros((ROWS, TOKENS), bool)
    mask[0], mask[1, 4], mask[3, [2, 6]] = True, True, True
    return mask


def split(batch, order):
    """The rows of a batch in another order, as two microbatches."""
    return {name: x[0][order].reshape(2, ROWS // 2, *x.shape[2:]) for name, x in batch.items()}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])


@pytest.fixture(scope="module")
def full(mesh):
    """batch -> (state, metrics) after one step of the whole model from the same start."""
    start = random_like(FULL.shapes, 0)
    step = make_train_step(FULL, OPTIMIZER, STEPS, mesh)
    return lambda batch: step(init_state(FULL, mesh, 0, start), None, batch)


@pytest.fixture(scope="module")
def adapt(mesh):
    """(step, start, base) of an adapter on a frozen base; `start()` is a new state around one and the same adapter."""
    adapter = random_like(ADAPTED.lora_shapes, 1)
    step = make_train_step(ADAPTED, OPTIMIZER, STEPS, mesh)
    base = random_like(ADAPTED.shapes, 2, jnp.bfloat16)
    return step, lambda: init_state(ADAPTED, mesh, 0, adapter), base


def assert_same(tree, other):
    """Bit for bit."""
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), tree, other)


def assert_close(tree, other):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), tree, other)


def test_metrics_count_the_batch(full):
    _, metrics = full(make_batch(uneven_mask()))
    # Position 3 starts a segment, so the full first row has 7 - 2 targets.
    assert metrics.weight == 8 and metrics.tokens == 28
    np.testing.assert_array_equal(metrics.row_weight, [[5, 1, 0, 2]])
    np.testing.assert_array_equal(metrics.source, [[0, 2, 2, 0]])
    np.testing.assert_allclose(metrics.row_loss_sum.sum(), metrics.loss_sum, rtol=1e-6)
    assert metrics.row_loss_sum[0, 2] == 0 and metrics.finite
    np.testing.assert_allclose(metrics.learning_rate, make_schedule(OPTIMIZER, STEPS)(0))
    floats = dataclasses.replace(metrics, finite=None, source=None)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(floats))


@settings(max_examples=15)
@given(
    st.permutations(range(ROWS)),
    st.lists(st.lists(st.booleans(), min_size=TOKENS, max_size=TOKENS), min_size=ROWS, max_size=ROWS),
)
def test_accumulation_is_one_large_batch(full, order, mask):
    """Whatever rows share a microbatch, and however unevenly their targets lie."""
    for batch in (make_batch(uneven_mask()), make_batch(np.array(mask))):
        whole, whole_metrics = full(batch)
        parted, parted_metrics = full(split(batch, order))
        moved = jax.tree.map(lambda x: np.asarray(x)[0][order].reshape(2, -1) if x.ndim else x, whole_metrics)
        assert_close(parted_metrics, moved)
        assert_close(parted, whole)


def test_a_batch_without_targets_moves_nothing_but_the_decay(full):
    state, metrics = full(make_batch(np.zeros((ROWS, TOKENS), bool)))
    assert metrics.weight == 0 and metrics.grad_norm == 0 and metrics.finite
    rate = metrics.learning_rate * OPTIMIZER.weight_decay
    assert_close(state.params, jax.tree.map(lambda p: p * (1 - rate), random_like(FULL.shapes, 0)))


def test_only_the_adapter_is_trained_and_it_stays_float32(adapt):
    """The start survives, since arms continue one adapter, and its base is cached; the state is donated."""
    step, start, base = adapt
    first, before = start(), jax.device_get((start(), base))
    state, metrics = first, None
    for seed in range(3):
        state, metrics = step(state, base, make_batch(uneven_mask(), seed))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert metrics.finite and state.step == 3
    assert_same((start(), base), before)
    assert {leaf.dtype for leaf in jax.tree.leaves(base)} == {np.dtype(jnp.bfloat16)}
    for leaf, old in zip(jax.tree.leaves(state.params), jax.tree.leaves(before[0].params), strict=True):
        assert leaf.dtype == np.float32 and np.all(leaf != old)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    sizes = [leaf.shape for leaf in jax.tree.leaves(ADAPTED.lora_shapes)]
    assert sorted(leaf.shape for leaf in moments) == sorted(2 * sizes), "two moments per number of the adapter, no more"
    assert {leaf.dtype for leaf in moments} == {np.dtype(np.float32)}


@pytest.mark.parametrize("poison", ["base", "adapter"])
def test_a_loss_that_is_not_finite_changes_nothing(adapt, poison):
    step, start, base = adapt
    state, _ = step(start(), base, make_batch(uneven_mask()))  # moments that are not zero
    if poison == "base":
        base = base | {"norm": {"scale": base["norm"]["scale"].at[3].set(jnp.inf)}}
    else:
        a = state.params["layers"]["q"]["lora_a"]
        state.params["layers"]["q"]["lora_a"] = a.at[0, 0, 0].set(jnp.nan)
    before = jax.device_get(state)
    after, metrics = step(state, base, make_batch(uneven_mask()))
    assert not metrics.finite
    assert_same((after.params, after.opt_state), (before.params, before.opt_state))
    assert after.step == before.step + 1


def test_stages_share_one_compiled_step(full, mesh):
    """Whatever their learning rates and numbers of steps; each keeps to its own."""
    batch = make_batch(uneven_mask())
    full(batch)
    compiled = _jit_step(FULL, mesh)
    before = compiled._cache_size()
    other = dataclasses.replace(OPTIMIZER, learning_rate=0.2, warmup_fraction=0.0, final_fraction=0.5)
    for steps in (1, 7):
        step = make_train_step(Model(dataclasses.replace(DECODER)), other, steps, mesh)
        state = init_state(FULL, mesh, 0)
        for done in range(2):
            state, metrics = step(state, None, batch)
            np.testing.assert_allclose(metrics.learning_rate, make_schedule(other, steps)(done), rtol=1e-6)
    assert compiled._cache_size() == before
