"""`TokenMask`: which tokens of a sequence are hidden, and the gathers and scatters that follow from it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mim_jax.errors import ConfigError


def num_kept(
    num_tokens: int, mask_ratio: float, *, may_keep_all: bool = False, rounding: Callable[[float], int] = int
) -> int:
    """Number of visible tokens, `rounding(N * (1 - ratio))` in Python floats: MAE's code truncates it, by `int`.

    Raises:
      ConfigError: the ratio is outside (0, 1), or leaves no token visible or none hidden; but with `may_keep_all` it
        may be 0, which hides nothing.
    """
    if may_keep_all and mask_ratio == 0.0:
        return num_tokens
    if not 0.0 < mask_ratio < 1.0:
        raise ConfigError(f"mask_ratio is {mask_ratio}; it must lie strictly between 0 and 1.")
    keep = rounding(num_tokens * (1 - mask_ratio))
    if not 0 < keep < num_tokens:
        raise ConfigError(
            f"mask_ratio {mask_ratio} keeps {keep} of {num_tokens} tokens; choose a ratio that keeps at least one "
            "token and hides at least one."
        )
    return keep


@struct.dataclass
class TokenMask:
    """A per-sample choice of hidden tokens, with static counts so that gathers have static shapes under `jit`.

    `order` lists token indices, the kept ones first. The kept ones stay in the order they were chosen in (noise rank
    for `from_noise`), as in MAE's reference code, so that latents can be compared row by row.
    """

    mask: jax.Array  # [B, N] bool, True = hidden, in raster order
    order: jax.Array  # [B, N] int32, a permutation of the tokens, kept ones first
    num_keep: int | None = struct.field(pytree_node=False)  # None: rows differ, so only mask-token methods can use it

    @classmethod
    def from_noise(cls, noise: jax.Array, num_keep: int) -> TokenMask:
        """Keeps the `num_keep` tokens of smallest `noise [B, N]` (stable sort: ties go to the lower index)."""
        return cls.from_order(jnp.argsort(noise, axis=1, stable=True), num_keep)

    @classmethod
    def from_order(cls, order: jax.Array, num_keep: int) -> TokenMask:
        """Keeps the first `num_keep` tokens of `order [B, N]`, each row a permutation of the tokens, in that order."""
        rank = jnp.argsort(order, axis=1, stable=True)
        return cls(mask=rank >= num_keep, order=order.astype(jnp.int32), num_keep=num_keep)

    @classmethod
    def from_bool(cls, mask: jax.Array, num_keep: int | None = None) -> TokenMask:
        """From `mask [B, N]` (bool or 0/1, true = hidden); kept tokens in raster order.

        `num_keep` must be given under `jit`; outside it is counted, and left `None` where rows hide different numbers.

        Raises:
          ValueError: `num_keep` is missing under `jit`, or the mask does not keep that many in every row.
        """
        if isinstance(mask, jax.core.Tracer):
            if num_keep is None:
                raise ValueError("TokenMask.from_bool needs num_keep under jit, where the mask cannot be counted.")
        else:
            visible = (~np.asarray(mask).astype(bool)).sum(axis=1)
            counts = sorted(set(visible.tolist()))
            if num_keep is not None and counts != [num_keep]:
                raise ValueError(f"The mask keeps {counts} tokens a row, not num_keep={num_keep}.")
            if num_keep is None and len(counts) == 1:
                num_keep = counts[0]
        mask = jnp.asarray(mask).astype(bool)
        order = jnp.argsort(mask, axis=1, stable=True).astype(jnp.int32)
        return cls(mask=mask, order=order, num_keep=num_keep)

    @property
    def ids_keep(self) -> jax.Array:
        """Indices of the kept tokens, `[B, K]` int32."""
        return self.order[:, : self._count()]

    @property
    def ids_hidden(self) -> jax.Array:
        """Indices of the hidden tokens, `[B, N - K]` int32."""
        return self.order[:, self._count() :]

    @property
    def ids_restore(self) -> jax.Array:
        """The inverse of `order`, `[B, N]` int32: where each raster token stands in the kept-first sequence."""
        return jnp.argsort(self.order, axis=1).astype(jnp.int32)

    def keep(self, tokens: jax.Array) -> jax.Array:
        """The visible rows of `tokens [B, N, D]`: `[B, K, D]`, in `order`."""
        return take_tokens(tokens, self.ids_keep)

    def restore(self, visible: jax.Array, mask_token: jax.Array) -> jax.Array:
        """Raster-order sequence `[B, N, D]` with `visible [B, K, D]` in place and `mask_token [D]` everywhere else."""
        batch, num_visible, width = visible.shape
        hidden = self.order.shape[1] - num_visible
        fill = jnp.broadcast_to(mask_token.astype(visible.dtype)[None, None, :], (batch, hidden, width))
        return take_tokens(jnp.concatenate([visible, fill], axis=1), self.ids_restore)

    def _count(self) -> int:
        if self.num_keep is None:
            raise ValueError(
                "The rows of this TokenMask keep different numbers of tokens, which cannot be gathered into one array; "
                "hide the same number in every row."
            )
        return self.num_keep


def take_tokens(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows `ids [B, K]` of `tokens [B, N, D]`: `[B, K, D]`.

    With several views of each image, `ids [B * V, K]` holds the V rows of an image one after the other, and so does the
    result `[B * V, K, D]`.
    """
    per_image = ids.reshape(tokens.shape[0], -1)
    return jnp.take_along_axis(tokens, per_image[:, :, None], axis=1).reshape(*ids.shape, tokens.shape[-1])


def first_views_first(rows: jax.Array, num_views: int) -> jax.Array:
    """From the views of an image side by side, `[B * V, ...]`, to the first views of all images before the second ones.

    So the rows of official codes stand, which repeat the batch as a whole.
    """
    by_image = rows.reshape(-1, num_views, *rows.shape[1:])
    return jnp.swapaxes(by_image, 0, 1).reshape(rows.shape)
