"""Resizing tables of relative positions to other windows, as BEiT and SimMIM do it for fine-tuning."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import RectBivariateSpline


def resize_relative_table(table: np.ndarray, source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """A table `[n * n, H]` of relative positions in windows of `(n + 1) / 2` tokens, for other windows.

    The old offsets are stretched over the new ones in a geometric progression, so that steps between neighbours stay as
    they are and far ones grow, and cubic splines through them are read at whole steps. Beyond the outermost offset the
    value there holds.

    Args:
      table: one column a head.
      source: `(n, n)`, at least (5, 5).
      target: `(m, m)`.

    Returns:
      `[m * m, H]` of the table's dtype.
    """
    if source == target:
        return table
    old, new = source[0], target[0]
    offsets = _geometric_offsets(old // 2, new // 2)
    steps = np.arange(new) - new // 2
    grids = np.asarray(table, np.float64).reshape(old, old, -1)
    resized = [RectBivariateSpline(offsets, offsets, grids[:, :, head])(steps, steps) for head in range(grids.shape[2])]
    return np.stack(resized, axis=-1).reshape(new * new, -1).astype(table.dtype)


def _geometric_offsets(count: int, reach: int) -> np.ndarray:
    """`[2 count + 1]`, symmetric about 0: the sums of 1, q, q^2, ... with the q for which the last one is `reach`.

    As in the official code q is bisected between 1.01 and 1.5, so that a much smaller reach is not attained.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2.0
        if (1.0 - ratio**count) / (1.0 - ratio) > reach:
            high = ratio
        else:
            low = ratio
    positive = np.cumsum(ratio ** np.arange(count))
    return np.concatenate([-positive[::-1], [0.0], positive])
