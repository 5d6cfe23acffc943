"""The learning rate against values by hand. What AdamW makes of it, test_golden.py holds."""

import jax
import numpy as np
import pytest

from msm_jax.train.optimizer import OptimizerConfig, make_schedule


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
