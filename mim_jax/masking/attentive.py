"""Masks that leave visible what a network attends to (Xue et al. 2023, MaskAlign, section 3.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mim_jax.masking.token_mask import TokenMask


def attentive_mask(rng: jax.Array, importance: jax.Array, num_keep: int) -> TokenMask:
    """Keeps `num_keep` tokens drawn one after the other, without replacement, in proportion to their importance.

    By hand: what `torch.multinomial` draws goes to `TokenMask.from_order`; from numbers e of Exp(1), the same draw is
    `TokenMask.from_noise(e / importance, num_keep)`.

    Args:
      importance: `[B, N]` of any scale, such as attention; of equal ones the draw is uniform. A token of importance 0
        is kept only if there are not enough others.

    Returns:
      A mask whose visible tokens are in the order in which they were drawn.
    """
    # The largest of log p + Gumbel noise is a draw in proportion to p, and so is the largest of those that are left.
    log_importance = jnp.log(jnp.maximum(importance.astype(jnp.float32), jnp.finfo(jnp.float32).tiny))
    return TokenMask.from_noise(-log_importance - jax.random.gumbel(rng, importance.shape, jnp.float32), num_keep)
