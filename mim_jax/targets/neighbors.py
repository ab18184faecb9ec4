"""Which of the patches around a patch are most like it (Mo and Yun 2024, DMT-JEPA, arXiv 2405.17995)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.errors import ConfigError


def neighbor_table(grid: tuple[int, int], window: int = 3) -> np.ndarray:
    """The other patches of the `window` x `window` cells about each patch, int32 `[N, window^2 - 1]` in raster order.

    The grid is a torus, as in the official code: patches at a border have neighbours at the opposite one.

    Raises:
      ConfigError: the window is even or less than 3, or the grid is smaller, so that neighbours would not be distinct.
    """
    if window < 3 or window % 2 == 0:
        raise ConfigError(f"head.window is {window}; it must be odd and at least 3.")
    if min(grid) < window:
        raise ConfigError(
            f"head.window is {window}, but there are only {grid[0]}x{grid[1]} patches; use larger images or smaller "
            "patches."
        )
    height, width = grid
    rows, columns = np.divmod(np.arange(height * width), width)
    offsets = np.arange(window) - window // 2
    dy, dx = (offset.ravel() for offset in np.meshgrid(offsets, offsets, indexing="ij"))
    others = (dy != 0) | (dx != 0)
    table = (rows[:, None] + dy[others]) % height * width + (columns[:, None] + dx[others]) % width
    return np.sort(table, axis=1).astype(np.int32)


def similar_neighbors(features: jax.Array, table: np.ndarray, count: int) -> jax.Array:
    """The `count` neighbours of each patch whose features have the largest cosine with its own.

    Args:
      features: `[B, N, D]` float32.
      table: neighbours `[N, K]` of each patch.
      count: how many of the K.

    Returns:
      Patches `[B, N, count]` int32, the most similar first.
    """
    norm = jnp.sqrt(jnp.square(features).sum(axis=-1, keepdims=True))
    unit = features / jnp.maximum(norm, 1e-12)
    # One column after the other: all neighbours of all patches at once would take K times the memory of the features.
    similarity = jnp.stack([(unit * unit[:, column]).sum(axis=-1) for column in table.T], axis=-1)
    _, chosen = jax.lax.top_k(similarity, count)
    return jnp.take_along_axis(jnp.broadcast_to(table[None], similarity.shape), chosen, axis=2)
