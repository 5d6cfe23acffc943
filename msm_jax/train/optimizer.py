"""AdamW with clipping, warm-up and cosine decay."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["learning_rate", "warmup_fraction", "final_fraction"],
    meta_fields=["weight_decay", "beta1", "beta2", "epsilon", "clip_norm"],
)
@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101). The learning rate rises linearly over `warmup_fraction` of the steps to
    `learning_rate`, then falls along a cosine that would reach `final_fraction` of it one step after the last.

    A compiled step takes the learning rate's numbers as arguments; the others are constants of it."""

    learning_rate: float = 1e-4
    warmup_fraction: float = 0.05
    final_fraction: float = 0.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float = 1.0


def make_schedule(config: OptimizerConfig, steps: jax.typing.ArrayLike) -> optax.Schedule:
    """Learning rate as a function of the optimiser steps done (0-based). Unlike those of optax, it may be traced."""
    # Warm-up never takes all steps, and its first step already moves: a step at rate 0 would be lost.
    warmup = jnp.minimum(jnp.round(config.warmup_fraction * steps), steps - 1)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        rise = (step + 1) / (warmup + 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * (step - warmup) / (steps - warmup)))
        fall = (1 - config.final_fraction) * cosine + config.final_fraction
        return config.learning_rate * jnp.where(step < warmup, rise, fall)

    return schedule


def make_optimizer(config: OptimizerConfig, steps: jax.typing.ArrayLike) -> optax.GradientTransformation:
    moments = {"b1": config.beta1, "b2": config.beta2, "eps": config.epsilon}
    adamw = optax.adamw(make_schedule(config, steps), weight_decay=config.weight_decay, **moments)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def init_optimizer(params: Any) -> optax.OptState:
    """The state to begin with, which is the same in every configuration."""
    return make_optimizer(OptimizerConfig(), steps=1).init(params)
