"""Another network's features as targets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def normalized_features(features: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """`features [..., C]` with mean 0 and variance 1 over the channels, float32: a LayerNorm without parameters."""
    features = features.astype(jnp.float32)
    centred = features - features.mean(axis=-1, keepdims=True)
    # About the mean, as PyTorch takes it: `jax.nn.standardize` takes the mean's square off, and digits with it.
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon)


def smooth_l1(prediction: jax.Array, target: jax.Array, beta: float) -> jax.Array:
    """PyTorch's: `d^2 / (2 beta)` where the difference `d` is below `beta`, else `|d| - beta / 2`; of every element."""
    return optax.losses.huber_loss(prediction, target, delta=beta) / beta
