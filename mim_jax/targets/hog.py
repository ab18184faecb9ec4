"""Histograms of oriented gradients as targets (Wei et al. 2022, MaskFeat; here as DMJD computes them)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from mim_jax.errors import ConfigError
from mim_jax.layers.patches import patchify

EPSILON = 1e-5  # of the normalisation of a histogram


def check_hog(patch_size: tuple[int, int], cell_size: int, orientations: int) -> None:
    """Raises ConfigError unless cells of `cell_size` pixels tile a patch and there are orientations to count."""
    ph, pw = patch_size
    if cell_size < 1 or ph % cell_size or pw % cell_size:
        raise ConfigError(f"hog.cell_size {cell_size} does not tile patches of {ph}x{pw} pixels; choose a divisor.")
    if orientations < 2:
        raise ConfigError(f"hog.orientations is {orientations}; a histogram needs at least 2.")


def hog_dim(patch_size: tuple[int, int], cell_size: int, orientations: int, channels: int) -> int:
    """Length of a patch's target."""
    return (patch_size[0] // cell_size) * (patch_size[1] // cell_size) * orientations * channels


def hog_target(pixels: jax.Array, patch_size: tuple[int, int], cell_size: int = 8, orientations: int = 9) -> jax.Array:
    """Normalised histograms of the cells of each patch, `[B, N, cells * orientations * C]` float32.

    A patch's values are ordered (cell row, cell column, orientation, channel). Every histogram, one for each cell and
    channel, is normalised over its orientations to mean 0 and (biased) variance 1, with 1e-5 added to the variance; a
    flat cell gives zeros. There is no normalisation over blocks of cells and no choice among channels, so that this
    differs from MaskFeat's and from scikit-image's.

    Args:
      pixels: `[B, H, W, C]` in 0..255. Their scale matters little, and only through the 1e-5.
      patch_size: `(height, width)` in pixels.
      cell_size: side of a cell in pixels; divides both.
      orientations: bins of the half circle.
    """
    batch, height, width, channels = pixels.shape
    histograms = cell_histograms(pixels, cell_size, orientations)
    centred = histograms - histograms.mean(axis=3, keepdims=True)
    variance = jnp.square(centred).mean(axis=3, keepdims=True)
    whitened = centred * jax.lax.rsqrt(variance + EPSILON)
    cells = whitened.reshape(batch, height // cell_size, width // cell_size, orientations * channels)
    return patchify(cells, (patch_size[0] // cell_size, patch_size[1] // cell_size))


def cell_histograms(pixels: jax.Array, cell_size: int, orientations: int) -> jax.Array:
    """Gradient magnitude by orientation, mean over each cell: `[B, H / cell, W / cell, orientations, C]` float32.

    Gradients are differences of the two neighbours of a pixel, not halved, and 0 on the border. A pixel counts in one
    bin alone: that of its angle in [0, pi), 0 where only columns differ.
    """
    pixels = pixels.astype(jnp.float32)
    batch, height, width, channels = pixels.shape
    down = jnp.pad(pixels[:, 2:] - pixels[:, :-2], ((0, 0), (1, 1), (0, 0), (0, 0)))
    right = jnp.pad(pixels[:, :, 2:] - pixels[:, :, :-2], ((0, 0), (0, 0), (1, 1), (0, 0)))
    magnitude = jnp.sqrt(jnp.square(down) + jnp.square(right))
    bins = jnp.arange(orientations, dtype=jnp.int32)[None, None, None, :, None]
    own = _orientation_bin(down, right, orientations)[:, :, :, None] == bins
    spread = jnp.where(own, magnitude[:, :, :, None], jnp.zeros((), jnp.float32))
    cells = (height // cell_size, cell_size, width // cell_size, cell_size)
    return spread.reshape(batch, *cells, orientations, channels).mean(axis=(2, 4))


def _orientation_bin(down: jax.Array, right: jax.Array, orientations: int) -> jax.Array:
    # Comparing with the directions between bins is cheaper than arctan2, and as exact: no gradient of 8-bit pixels but
    # one along an axis lies so close to such a direction that rounding could move it.
    lower = (down < 0) | ((down == 0) & (right < 0))
    down, right = jnp.where(lower, -down, down), jnp.where(lower, -right, right)
    edges = [math.pi * edge / orientations for edge in range(1, orientations)]
    passed = [(down * math.cos(angle) >= right * math.sin(angle)).astype(jnp.int32) for angle in edges]
    return sum(passed, jnp.zeros(down.shape, jnp.int32))
