"""The learning rate against values by hand, and AdamW against NumPy."""

import jax
import numpy as np
import pytest

from msm_jax.train.optimizer import OptimizerConfig, make_optimizer, make_schedule


def rates(config, steps):
    """The learning rate of every step, and what would follow the last."""
    return np.asarray(jax.vmap(make_schedule(config, steps))(np.arange(steps + 1)))


def test_learning_rate_at_its_corners():
    rate = rates(OptimizerConfig(learning_rate=2.0, warmup_fraction=0.1, final_fraction=0.2), 100)
    np.testing.assert_allclose(rate[:10], 2.0 * np.arange(1, 11) / 11, rtol=1e-6)
    np.testing.assert_allclose(rate[10], 2.0, rtol=1e-6)  # the first step after warm-up
    np.testing.assert_allclose(rate[55], 1.2, rtol=1e-6)  # half of the cosine, between 2.0 and 0.4
    np.testing.assert_allclose(rate[99], 0.4 + 1.6 * (1 + np.cos(np.pi * 89 / 90)) / 2, rtol=1e-6)
    np.testing.assert_allclose(rate[100], 0.4, rtol=1e-6)
    assert np.all(np.diff(rate[:11]) > 0) and np.all(np.diff(rate[10:]) < 0)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
def test_no_step_of_a_short_run_is_lost(steps, warmup):
    rate = rates(OptimizerConfig(learning_rate=1.0, warmup_fraction=warmup), steps)[:steps]
    assert np.all(rate > 0) and rate.max() == 1.0


def adamw(config, params, gradients, rates):
    """AdamW (arXiv 1711.05101, algorithm 2) on a dict of arrays, with the gradients clipped by their global norm."""
    first, second = ({name: np.zeros_like(p) for name, p in params.items()} for _ in range(2))
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        for name, p in params.items():
            g = gradient[name] * min(1.0, config.clip_norm / norm)
            first[name] = config.beta1 * first[name] + (1 - config.beta1) * g
            second[name] = config.beta2 * second[name] + (1 - config.beta2) * g**2
            m, v = first[name] / (1 - config.beta1**t), second[name] / (1 - config.beta2**t)
            params = params | {name: p - rate * (m / (np.sqrt(v) + config.epsilon) + config.weight_decay * p)}
    return params


def test_three_steps_of_adamw():
    """Clipped in the first and the last; a moment's bias, the decay and epsilon large enough to matter."""
    config = OptimizerConfig(
        learning_rate=0.1, warmup_fraction=0.5, weight_decay=0.3, beta1=0.8, beta2=0.9, epsilon=0.05, clip_norm=0.7
    )
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 2), "b": (4,)}
    start = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    gradients = [
        {name: scale * rng.standard_normal(shape) for name, shape in shapes.items()} for scale in (1.0, 0.05, 4.0)
    ]
    steps = len(gradients)
    transform = make_optimizer(config, steps)

    @jax.jit
    def run(params, gradients):
        state = transform.init(params)
        for gradient in gradients:
            updates, state = transform.update(gradient, state, params)
            params = jax.tree.map(lambda p, u: p + u, params, updates)
        return params

    single = jax.tree.map(np.float32, (start, gradients))
    expected = adamw(config, start, gradients, rates(config, steps)[:steps].astype(np.float64))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), run(*single), expected)
