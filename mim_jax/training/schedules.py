"""Learning rate and weight decay as functions of the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.training.duration import RunLength

Schedule = Callable[[jax.Array], jax.Array]
SCHEDULES = ("cosine", "linear", "constant", "rsqrt", "step")


def peak_learning_rate(config: ConfigDict) -> float:
    """`optimizer.lr` scaled to the batch size (Goyal et al. 2017), unless it is absolute."""
    return config.optimizer.lr * lr_scale(config)


def lr_scale(config: ConfigDict) -> float:
    """What every learning rate of the config is multiplied by: `batch_size / lr_reference_batch`, or its square root.

    Raises:
      ConfigError: `optimizer.lr_scaling` is unknown.
    """
    reference, scaling = config.optimizer.lr_reference_batch, config.optimizer.lr_scaling
    if scaling not in ("linear", "sqrt"):
        raise ConfigError(f"optimizer.lr_scaling is {scaling!r}; choose 'linear' or 'sqrt'.")
    ratio = 1.0 if reference is None else config.batch_size / reference
    return math.sqrt(ratio) if scaling == "sqrt" else ratio


def learning_rate_schedule(config: ConfigDict, total_steps: int, length: RunLength) -> Schedule:
    """Linear warm-up from `start_lr` to the peak, then what `schedule.name` says; float32 scalar of the step.

    Raises:
      ConfigError: unknown name, or a warm-up longer than the run.
    """
    schedule = config.schedule
    if schedule.name not in SCHEDULES:
        raise ConfigError(f"schedule.name is {schedule.name!r}; choose one of {', '.join(SCHEDULES)}.")
    warmup = length.steps(schedule.warmup, "schedule.warmup")
    if warmup > total_steps:
        raise ConfigError(
            f"schedule.warmup ({schedule.warmup}, {warmup} steps) is longer than duration "
            f"({config.duration}, {total_steps} steps); shorten it."
        )
    scale = lr_scale(config)
    start, peak, end = schedule.start_lr * scale, peak_learning_rate(config), schedule.end_lr * scale
    horizon = total_steps if schedule.length is None else length.steps(schedule.length, "schedule.length")
    horizon -= int(schedule.reaches_end)
    milestones = tuple(length.steps(m, "schedule.milestones") for m in schedule.milestones)

    def after_warmup(step: jax.Array) -> jax.Array:
        if schedule.name in ("cosine", "linear"):
            first = 0 if schedule.cosine_includes_warmup and schedule.name == "cosine" else warmup
            progress = jnp.clip((step - first) / max(horizon - first, 1), 0.0, 1.0)
            left = 1.0 - progress if schedule.name == "linear" else 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
            return end + (peak - end) * left
        if schedule.name == "rsqrt":
            return peak * jnp.sqrt(max(warmup, 1) / jnp.maximum(step, max(warmup, 1)))
        passed = sum(((step >= m).astype(jnp.float32) for m in milestones), jnp.zeros((), jnp.float32))
        return peak * jnp.power(schedule.gamma, passed)

    def learning_rate(step: jax.Array) -> jax.Array:
        step = jnp.maximum(jnp.asarray(step, jnp.float32) + schedule.offset, 0.0)
        warming = start + (peak - start) * step / max(warmup - int(schedule.warmup_reaches_peak), 1)
        return jnp.where(step < warmup, warming, after_warmup(step)).astype(jnp.float32)

    return learning_rate


def weight_decay_schedule(config: ConfigDict, total_steps: int) -> Schedule:
    """`weight_decay`, or a half cosine from it to `weight_decay_end` over the run (I-JEPA, DINO)."""
    start, end = config.optimizer.weight_decay, config.optimizer.weight_decay_end
    horizon = max(total_steps - int(config.schedule.reaches_end), 1)

    def weight_decay(step: jax.Array) -> jax.Array:
        if end is None:
            return jnp.full((), start, jnp.float32)
        progress = (jnp.asarray(step, jnp.float32) + config.schedule.offset) / horizon
        progress = jnp.clip(progress, 0.0, 1.0)
        return (end + 0.5 * (start - end) * (1.0 + jnp.cos(jnp.pi * progress))).astype(jnp.float32)

    return weight_decay
