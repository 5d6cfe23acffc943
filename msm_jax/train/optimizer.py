"""AdamW with clipping, warm-up and cosine decay."""

import dataclasses

import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101). The learning rate rises linearly over `warmup_fraction` of the steps to
    `learning_rate`, then falls along a cosine that would reach `final_fraction` of it one step after the last."""

    learning_rate: float = 1e-4
    warmup_fraction: float = 0.05
    final_fraction: float = 0.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float = 1.0


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate as a function of the optimiser steps done (0-based)."""
    # Warm-up never takes all steps, and its first step already moves: a step at rate 0 would be lost.
    warmup = min(round(config.warmup_fraction * steps), steps - 1)
    first = config.learning_rate / (warmup + 1)
    rise = optax.linear_schedule(first, config.learning_rate, warmup)
    fall = optax.cosine_decay_schedule(config.learning_rate, max(steps - warmup, 1), config.final_fraction)
    return optax.join_schedules([rise, fall], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        ),
    )
