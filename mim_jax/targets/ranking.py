"""Objectives for a predictor of losses (Wang et al. 2023, HPM, section 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

EPSILON = 1e-6


def relative_loss(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """How badly `prediction [B, N]` orders each row's pairs as `target [B, N]` does: a binary cross-entropy, float32.

    The mean of `-log(sigmoid(q_j - q_i) + 1e-6)` over all pairs of a row with `t_j > t_i`, of the whole batch; ties do
    not count. The official code sums over ordered pairs, which counts every pair twice above and below the line. With
    its 1e-6 the loss of a pair ends at 13.8, and its gradient vanishes there. No gradient reaches the target.
    """
    prediction, target = prediction.astype(jnp.float32), jax.lax.stop_gradient(target)
    harder = target[:, None, :] > target[:, :, None]  # [B, i, j]
    difference = prediction[:, None, :] - prediction[:, :, None]
    log_probability = jnp.log(jax.nn.sigmoid(difference) + EPSILON)
    count = harder.sum(dtype=jnp.float32)
    return -jnp.where(harder, log_probability, 0.0).sum() / jnp.maximum(count, 1.0)


def absolute_loss(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error to `target [B, N]` standardised in each row (unbiased variance), float32.

    No gradient reaches the target.
    """
    target = jax.lax.stop_gradient(target)
    mean, variance = target.mean(axis=1, keepdims=True), target.var(axis=1, keepdims=True, ddof=1)
    target = (target - mean) / jnp.sqrt(variance + EPSILON)
    return jnp.square(prediction.astype(jnp.float32) - target).mean()
