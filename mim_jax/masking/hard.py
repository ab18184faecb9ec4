"""Masks that hide the patches a score calls hard, and random ones besides (Wang et al. 2023, HPM, section 3.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mim_jax.masking.token_mask import TokenMask


def hard_mask(rng: jax.Array, scores: jax.Array, num_hard: jax.Array | int, num_keep: int) -> TokenMask:
    """Hides the `num_hard` tokens of largest score, and of the others as many at random as leave `num_keep` visible.

    Args:
      scores: `[B, N]` float32; of equal scores the higher index counts as the harder one.
      num_hard: int32 scalar, traced or not, of at most `N - num_keep`; 0 gives a uniformly random mask.

    Returns:
      A mask whose visible tokens are in raster order.
    """
    num_tokens = scores.shape[1]
    rank = jnp.argsort(jnp.argsort(scores, axis=1, stable=True), axis=1)
    forced = rank >= num_tokens - num_hard
    noise = jax.random.uniform(rng, scores.shape, jnp.float32)
    noise = jnp.where(forced, jnp.inf, noise)
    return TokenMask.from_bool(TokenMask.from_noise(noise, num_keep).mask, num_keep)
