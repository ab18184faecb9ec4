"""Vectors of length 1."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
    """`x` over its length along `axis`, in float32; zero vectors stay zero."""
    x = x.astype(jnp.float32)
    # Under the root, so that the gradient of a zero vector exists.
    return x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(axis=axis, keepdims=True), 1e-24))
