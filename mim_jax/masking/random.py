"""Uniformly random masks over tokens and over coarse cells."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mim_jax.errors import ConfigError
from mim_jax.masking.token_mask import TokenMask, num_kept


def random_mask(
    rng: jax.Array, batch: int, num_tokens: int, mask_ratio: float, rounding: Callable[[float], int] = int
) -> TokenMask:
    """Hides a uniformly random `mask_ratio` of the tokens of each sample (He et al. 2022, section 3).

    `rounding` makes a whole number of how many are kept, see `num_kept`.
    """
    noise = jax.random.uniform(rng, (batch, num_tokens), jnp.float32)
    return TokenMask.from_noise(noise, num_kept(num_tokens, mask_ratio, rounding=rounding))


def random_cell_mask(
    rng: jax.Array, batch: int, grid: tuple[int, int], cell: tuple[int, int], mask_ratio: float
) -> TokenMask:
    """Hides `ceil(cells * mask_ratio)` random cells of `cell` tokens each (Xie et al. 2022, section 3.2).

    Args:
      grid: token grid `(h, w)`.
      cell: tokens per coarse cell `(ch, cw)`; must divide `grid`.

    Returns:
      A mask over `h * w` tokens in raster order, constant inside every cell.

    Raises:
      ConfigError: the cell does not divide the grid, or the ratio hides all cells or none.
    """
    rows, columns = check_cells(grid, cell)
    hidden = num_hidden_cells(rows * columns, mask_ratio)
    noise = jax.random.uniform(rng, (batch, rows * columns), jnp.float32)
    rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
    coarse = (rank < hidden).reshape(batch, rows, columns)
    fine = jnp.repeat(jnp.repeat(coarse, cell[0], axis=1), cell[1], axis=2)
    num_keep = (rows * columns - hidden) * cell[0] * cell[1]
    return TokenMask.from_bool(fine.reshape(batch, grid[0] * grid[1]), num_keep)


def check_cells(grid: tuple[int, int], cell: tuple[int, int]) -> tuple[int, int]:
    """Number of cells `(rows, columns)` of `cell` tokens that tile `grid`; raises ConfigError if they do not."""
    if min(cell) < 1 or grid[0] % cell[0] or grid[1] % cell[1]:
        raise ConfigError(
            f"mask_patch_size covers {cell[0]}x{cell[1]} tokens, which does not tile the {grid[0]}x{grid[1]} grid; "
            "choose a mask_patch_size that divides image_size and is a multiple of model.patch_size."
        )
    return grid[0] // cell[0], grid[1] // cell[1]


def tokens_per_cell(mask_patch_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Tokens `(ch, cw)` of a cell of `mask_patch_size` pixels; (0, 0), which `check_cells` refuses, if not whole."""
    cell = (mask_patch_size[0] // patch_size[0], mask_patch_size[1] // patch_size[1])
    whole = (cell[0] * patch_size[0], cell[1] * patch_size[1]) == tuple(mask_patch_size)
    return cell if whole else (0, 0)


def num_hidden_cells(num_cells: int, mask_ratio: float) -> int:
    """`ceil(cells * ratio)` as SimMIM counts them; raises ConfigError where that hides all cells or none."""
    if not 0.0 < mask_ratio < 1.0:
        raise ConfigError(f"mask_ratio is {mask_ratio}; it must lie strictly between 0 and 1.")
    hidden = math.ceil(num_cells * mask_ratio)
    if hidden >= num_cells:
        raise ConfigError(f"mask_ratio {mask_ratio} hides all {num_cells} cells; lower mask_ratio or mask_patch_size.")
    return hidden
