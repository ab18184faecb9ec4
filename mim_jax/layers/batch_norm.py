"""BatchNorm without affine parameters over features, with PyTorch's running statistics, as pure functions."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mim_jax.errors import ConfigError

EPSILON = 1e-6  # of MAE's linear probe; PyTorch's default is 1e-5
MOMENTUM = 0.1  # share of the new batch in the running statistics
Statistics = dict[str, jax.Array]


def initial_statistics(width: int) -> Statistics:
    """Running `mean` 0 and `variance` 1, both float32 `[width]`."""
    return {"mean": jnp.zeros((width,), jnp.float32), "variance": jnp.ones((width,), jnp.float32)}


def normalize_batch(
    features: jax.Array, statistics: Statistics, epsilon: float = EPSILON
) -> tuple[jax.Array, Statistics]:
    """Normalises `features [B, D]` by their own mean and biased variance, and updates the running statistics.

    The running variance takes the batch's unbiased variance, as PyTorch does. Under `jit` the batch is the global one,
    over all devices.

    Raises:
      ConfigError: the batch has one example, whose unbiased variance does not exist.
    """
    size = features.shape[0]
    if size < 2:
        raise ConfigError("Feature BatchNorm needs at least two examples in a batch; raise batch_size.")
    mean, variance = features.mean(axis=0), features.var(axis=0)
    batch = {"mean": mean, "variance": variance * (size / (size - 1))}
    running = jax.tree.map(lambda old, new: (1.0 - MOMENTUM) * old + MOMENTUM * new, statistics, batch)
    return normalize(features, {"mean": mean, "variance": variance}, epsilon), running


def normalize(features: jax.Array, statistics: Statistics, epsilon: float = EPSILON) -> jax.Array:
    """Normalises `features [B, D]` by given statistics; at test time these are the running ones."""
    scale = jax.lax.rsqrt(statistics["variance"] + epsilon)
    return (features - statistics["mean"][None]) * scale[None]
