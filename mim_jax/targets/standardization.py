"""Targets standardised by running statistics of each channel (UNIC)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

EPSILON = 1e-6
Moments = dict[str, jax.Array]


def initial_moments(width: int) -> Moments:
    """Running `mean` 0 and `std` 1, both float32 `[width]`."""
    return {"mean": jnp.zeros((width,), jnp.float32), "std": jnp.ones((width,), jnp.float32)}


def standardize(features: jax.Array, moments: Moments, momentum: jax.Array | float) -> tuple[jax.Array, Moments]:
    """Standardises float32 `features [..., C]` by the moments as they are, and then moves these towards the batch's.

    `momentum` is the weight of the new batch: 1 puts its moments in the place of the old ones, 0 leaves them alone. The
    standard deviation is the unbiased one over all axes but the last (under `jit`, of the global batch) and has an
    epsilon twice: one is stored with it, one is added where it divides.
    """
    axes = tuple(range(features.ndim - 1))
    mean, std = (jnp.expand_dims(moments[key], axes) for key in ("mean", "std"))
    batch = {"mean": features.mean(axes), "std": features.std(axes, ddof=1) + EPSILON}
    moved = jax.tree.map(lambda old, new: (1.0 - momentum) * old + momentum * new, moments, batch)
    return (features - mean) / (std + EPSILON), moved
