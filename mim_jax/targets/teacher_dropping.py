"""From which of several teachers an image learns (UNIC's teacher dropping)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def teacher_weights(losses: jax.Array, draws: jax.Array, drop: float) -> jax.Array:
    """Weights `[B, T]` of the losses of each image and teacher, float32, which together sum to 1 and have no gradient.

    An image always learns from the teacher it is worst at (the first of equals), and from any other unless it is
    dropped. The kept pairs of the batch weigh the same, so an image that keeps more teachers weighs more.

    Args:
      losses: `[B, T]` float32.
      draws: uniform numbers `[B, T]`; those below `drop` drop their teacher. Of the worst teachers they are not read.
      drop: probability of dropping a teacher.
    """
    worst = jnp.argmax(losses, axis=1)[:, None] == jnp.arange(losses.shape[1])[None]
    kept = (worst | (draws >= drop)).astype(jnp.float32)
    return jax.lax.stop_gradient(kept / kept.sum())
