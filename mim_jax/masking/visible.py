"""The visible tokens of a batch taken out of the grid and put back, with gradients that never scatter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from mim_jax.masking.token_mask import take_tokens


@struct.dataclass
class Visible:
    """Which tokens of each row are visible, and where each token of the grid stands among them.

    `take` and `place` are each other's transpose, so both directions of a gradient are plain gathers.
    """

    ids: jax.Array  # [B, K] int32, the visible tokens, each once
    slots: jax.Array  # [B, N] int32, where each token stands in `ids`; K where it is hidden

    @classmethod
    def from_ids(cls, ids: jax.Array, num_tokens: int) -> Visible:
        """From `ids [B, K]` on a grid of `num_tokens`."""
        found = ids[:, :, None] == jnp.arange(num_tokens, dtype=ids.dtype)[None, None]
        slots = jnp.where(found.any(axis=1), jnp.argmax(found, axis=1), ids.shape[1])
        return cls(ids=ids, slots=slots.astype(jnp.int32))

    def take(self, tokens: jax.Array) -> jax.Array:
        """The visible rows of `tokens [B, N, D]`: `[B, K, D]`."""
        return _take(tokens, self.ids, self.slots)

    def place(self, visible: jax.Array) -> jax.Array:
        """`visible [B, K, D]` in their places and zeros elsewhere: `[B, N, D]`."""
        return _place(visible, self.ids, self.slots)


@jax.custom_vjp
def _take(tokens: jax.Array, ids: jax.Array, slots: jax.Array) -> jax.Array:
    del slots
    return take_tokens(tokens, ids)


@jax.custom_vjp
def _place(visible: jax.Array, ids: jax.Array, slots: jax.Array) -> jax.Array:
    count = ids.shape[1]
    rows = take_tokens(visible, jnp.minimum(slots, count - 1))
    return jnp.where(slots[:, :, None] < count, rows, jnp.zeros((), rows.dtype))


_take.defvjp(
    lambda tokens, ids, slots: (_take(tokens, ids, slots), (ids, slots)),
    lambda where, gradient: (_place(gradient, *where), None, None),
)
_place.defvjp(
    lambda visible, ids, slots: (_place(visible, ids, slots), (ids, slots)),
    lambda where, gradient: (_take(gradient, *where), None, None),
)
