"""Several masks of each image that together show all of it, each token once (FastConvMAE)."""

from __future__ import annotations

import jax.numpy as jnp

from mim_jax.errors import ConfigError
from mim_jax.masking.token_mask import TokenMask


def complementary_views(mask: TokenMask) -> TokenMask:
    """The views of each image that show one part of `mask.order` after the other, the first one what `mask` shows.

    Returns:
      A mask for `B * N / K` rows, all views of an image side by side, so that a split batch stays where it is.
    """
    batch, num_tokens = mask.order.shape
    keep = mask.ids_keep.shape[1]
    check_complementary(num_tokens, keep)
    orders = [jnp.roll(mask.order, -start, axis=1) for start in range(0, num_tokens, keep)]
    return TokenMask.from_order(jnp.stack(orders, axis=1).reshape(batch * len(orders), num_tokens), keep)


def check_complementary(num_tokens: int, num_keep: int) -> None:
    """Raises ConfigError where masks that show `num_keep` tokens cannot show each one once."""
    if num_tokens % num_keep:
        raise ConfigError(
            f"mask_ratio keeps {num_keep} of {num_tokens} tokens, so that complementary views cannot show each token "
            "once; choose a mask_ratio that keeps a whole fraction of them, such as a quarter."
        )
