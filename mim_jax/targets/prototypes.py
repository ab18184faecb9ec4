"""Self-distillation over prototypes: a centred and sharpened teacher, and the student's cross-entropy to it.

Caron et al. 2021 (DINO); on patches Zhou et al. 2022 (iBOT).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sharpened(logits: jax.Array, centre: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """The teacher's distribution `softmax((logits - centre) / temperature)`, float32 `[..., K]`; gets no gradient.

    `centre [K]`, a running mean of the logits, keeps all examples from choosing the same prototype; a `temperature`
    below the student's keeps them from choosing all alike.
    """
    logits = jax.lax.stop_gradient(logits.astype(jnp.float32))
    return jax.nn.softmax((logits - centre.reshape((1,) * (logits.ndim - 1) + (-1,))) / temperature, axis=-1)


def cross_entropy(logits: jax.Array, target: jax.Array, temperature: float) -> jax.Array:
    """`-sum_k target_k log softmax(logits / temperature)_k` of arrays that broadcast to `[..., K]`: float32 `[...]`.

    The target has to sum to 1.
    """
    logits = logits.astype(jnp.float32) / temperature
    return jax.nn.logsumexp(logits, axis=-1) - (target * logits).sum(axis=-1)


def moved_centre(centre: jax.Array, logits: jax.Array, counted: jax.Array, momentum: float) -> jax.Array:
    """`momentum * centre + (1 - momentum) * mean`, the mean being that of the `logits [B, M, K]` that are `counted`.

    Under `jit` it is over the global batch. `counted` is `[B, M]` bool.
    """
    logits = jax.lax.stop_gradient(logits.astype(jnp.float32))
    weights = counted.astype(jnp.float32)
    mean = jnp.einsum("bm,bmk->k", weights, logits) / jnp.maximum(weights.sum(), 1.0)
    return momentum * centre + (1.0 - momentum) * mean
