"""InfoNCE between two sets of vectors, the other examples of the batch being the negatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mim_jax.layers.unit import unit


def info_nce(queries: jax.Array, keys: jax.Array, temperature: float) -> jax.Array:
    """`2 * temperature` times the cross-entropy of picking each query's own key (Chen et al. 2021, MoCo v3).

    Row i of `queries [B, D]` belongs to row i of `keys [B, D]`; all other keys of the batch, under `jit` the global
    one, are its negatives. Both are compared by cosine over `temperature`, in float32. No gradient reaches the keys.
    """
    queries, keys = unit(queries), unit(jax.lax.stop_gradient(keys))
    logits = jnp.einsum("id,jd->ij", queries, keys, precision="highest") / temperature
    log_share = jax.nn.log_softmax(logits, axis=-1)
    return -2.0 * temperature * jnp.trace(log_share) / queries.shape[0]
