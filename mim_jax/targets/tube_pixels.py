"""Pixels of tubes as targets, optionally normalised each by its own statistics (V-Pixel, the first stage of SALT)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mim_jax.layers.tubes import Tube, tubify

EPSILON = 1e-6


def tube_target(clips: jax.Array, tube: Tube, norm_pix: bool) -> jax.Array:
    """Tubes of `clips [B, T, H, W, C]` as targets `[B, N, t*h*w*C]` float32.

    With `norm_pix` each tube has its mean subtracted and is divided by its `tube_statistics`' deviation, so that a
    prediction of zero has a squared error of `(n - 1) / n` for n values a tube.
    """
    tubes = tubify(clips.astype(jnp.float32), tube)
    if not norm_pix:
        return tubes
    mean, deviation = tube_statistics(tubes)
    return (tubes - mean) / deviation


def tube_statistics(tubes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and UNBIASED standard deviation plus 1e-6 of each of `tubes [B, N, L]`: two arrays `[B, N, 1]`."""
    mean = tubes.mean(axis=-1, keepdims=True)
    return mean, tubes.std(axis=-1, keepdims=True, ddof=1) + EPSILON
