"""Two masks of one grid whose visible patches are disjoint (Kim et al. 2024, LUT)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from mim_jax.errors import ConfigError
from mim_jax.masking.token_mask import TokenMask


@struct.dataclass
class DisjointMasks:
    """The masks of two views; by hand `DisjointMasks(view1, view2)` of `TokenMask`s, `from_first` or `from_noise`."""

    view1: TokenMask
    view2: TokenMask

    @classmethod
    def from_noise(cls, noise: jax.Array, num_keep: int) -> DisjointMasks:
        """View 1 keeps the `num_keep` tokens of smallest `noise [B, N]`, view 2 the `num_keep` that follow them."""
        return cls.from_first(TokenMask.from_noise(noise, num_keep))

    @classmethod
    def from_first(cls, first: TokenMask) -> DisjointMasks:
        """View 2 keeps as many tokens as view 1, those that follow in its `order`.

        Raises:
          ValueError: the rows of `first` keep different numbers of tokens.
        """
        num_keep = first.ids_keep.shape[1]
        rank = first.ids_restore
        hidden = (rank < num_keep) | (rank >= 2 * num_keep)
        second = TokenMask(mask=hidden, order=jnp.roll(first.order, -num_keep, axis=1), num_keep=num_keep)
        return cls(view1=first, view2=second)


def random_disjoint_masks(rng: jax.Array, batch: int, num_tokens: int, num_keep: int) -> DisjointMasks:
    """Uniformly random disjoint sets of `num_keep` visible tokens for both views of each sample."""
    return DisjointMasks.from_noise(jax.random.uniform(rng, (batch, num_tokens), jnp.float32), num_keep)


def check_disjoint(num_tokens: int, num_keep: int) -> None:
    """Raises ConfigError where two disjoint sets of `num_keep` tokens do not fit."""
    if 2 * num_keep > num_tokens:
        raise ConfigError(
            f"mask_ratio keeps {num_keep} of {num_tokens} tokens, so that two views cannot have disjoint ones; choose "
            "a mask_ratio of at least 0.5."
        )
