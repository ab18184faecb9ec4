"""BEiT's block-wise masks: rectangles until exactly so many tokens are hidden (Bao et al. 2022, algorithm 1)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from mim_jax.errors import ConfigError
from mim_jax.masking.token_mask import TokenMask

_ROUND = 16  # tries between two looks at whether all images are done, each of which costs a transfer between devices
_MAX_TRIES = 4096  # for grids on which no rectangle is ever accepted; on 14x14 with 98 hidden 1 % take over 68


def block_mask(
    rng: jax.Array,
    batch: int,
    grid: tuple[int, int],
    num_hidden: int,
    *,
    min_block: int = 16,
    min_aspect: float = 0.3,
) -> TokenMask:
    """Hides exactly `num_hidden` tokens of each image by rectangles that are drawn until they add up.

    While `rem` tokens are missing, a rectangle has an area uniform between `min_block` and `rem`, whichever is larger,
    and an aspect ratio log-uniform between `min_aspect` and its inverse. It is accepted if both sides are shorter than
    the grid's and it hides at least one new token and at most `rem`. As in the official code the sides never span the
    grid, so that the centre is hidden far more often than the corners; unlike in BEiT's own code, and as in CAE's, a
    run of bad luck does not end the search.

    If nothing is accepted for thousands of tries, which happens on no grid of use, random tokens make up the number.

    Raises:
      ConfigError: the grid has a side of one token, all or no tokens would be hidden, or a setting is impossible.
    """
    height, width = grid
    if min(grid) < 2:
        raise ConfigError(f"Block masks need a grid of at least 2x2 patches, not {height}x{width}.")
    if not 0 < num_hidden < height * width:
        raise ConfigError(f"Block masks cannot hide {num_hidden} of {height * width} patches; change mask_ratio.")
    if min_block < 1 or not 0.0 < min_aspect <= 1.0:
        raise ConfigError(
            f"min_block is {min_block} and min_aspect {min_aspect}; they must be at least 1, and in (0, 1]."
        )
    tries_rng, fill_rng = jax.random.split(rng)

    def try_once(attempt: jax.Array, hidden: jax.Array) -> jax.Array:
        draws = jax.random.uniform(jax.random.fold_in(tries_rng, attempt), (4, batch, 1, 1), jnp.float32)
        return _try_block(hidden, draws, num_hidden, min_block, min_aspect)

    def try_round(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        attempt, hidden = carry
        return attempt + _ROUND, jax.lax.fori_loop(attempt, attempt + _ROUND, try_once, hidden)

    def unfinished(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        attempt, hidden = carry
        return (attempt < _MAX_TRIES) & (hidden.sum(axis=(1, 2)) < num_hidden).any()

    start = (jnp.zeros((), jnp.int32), jnp.zeros((batch, height, width), bool))
    _, hidden = jax.lax.while_loop(unfinished, try_round, start)
    hidden = hidden.reshape(batch, height * width)
    # Hidden tokens first, in random order those that may have to make up the number.
    noise = jax.random.uniform(fill_rng, hidden.shape, jnp.float32)
    rank = jnp.argsort(jnp.argsort(jnp.where(hidden, noise - 1.0, noise), axis=1), axis=1)
    return TokenMask.from_bool(rank < num_hidden, height * width - num_hidden)


def _try_block(hidden: jax.Array, draws: jax.Array, num_hidden: int, min_block: int, min_aspect: float) -> jax.Array:
    """`hidden [B, H, W]` with one more rectangle where the one of `draws [4, B, 1, 1]` is accepted."""
    height, width = hidden.shape[1:]
    for_area, for_aspect, for_top, for_left = draws
    missing = num_hidden - hidden.sum(axis=(1, 2), keepdims=True)
    # Of reversed bounds, too, a value between them is drawn.
    area = min_block + (missing.astype(jnp.float32) - min_block) * for_area
    aspect = jnp.exp((2.0 * for_aspect - 1.0) * math.log(1.0 / min_aspect))
    h = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    w = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    top, left = _random_below(for_top, height - h + 1), _random_below(for_left, width - w + 1)
    row = jnp.arange(height, dtype=jnp.int32)[None, :, None]
    column = jnp.arange(width, dtype=jnp.int32)[None, None, :]
    block = (row >= top) & (row < top + h) & (column >= left) & (column < left + w)
    added = (block & ~hidden).sum(axis=(1, 2), keepdims=True)
    accepted = (h < height) & (w < width) & (added > 0) & (added <= missing)
    return hidden | (block & accepted)


def _random_below(uniform: jax.Array, bound: jax.Array) -> jax.Array:
    """A uniform integer in `[0, bound)`; 0 where there is none."""
    bound = jnp.maximum(bound, 1)
    return jnp.minimum((uniform * bound.astype(jnp.float32)).astype(jnp.int32), bound - 1)
