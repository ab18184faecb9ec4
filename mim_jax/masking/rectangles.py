"""Group masking: random rectangles of connected patches until a share of the grid is covered.

The masks of GMML and SiT (Atito et al. 2021 and 2022, "group masked model learning").
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from mim_jax.errors import ConfigError
from mim_jax.masking.token_mask import TokenMask, num_kept

_SURPLUS = 4  # rectangles drawn, as a multiple of how many cover the share if none is cut off at the border


@dataclasses.dataclass(frozen=True)
class RectangleSampler:
    """Lays rectangles one over the other until `mask_ratio` of the patches is hidden.

    Corners are uniform over the grid, both sides uniform between 1 and `max_rectangle` of the grid's; what lies outside
    is cut off. The last rectangle hides its patches row by row and stops at the count, so that without
    `mask_ratio_spread` every image hides equally many. Where all rectangles drawn cover too little (rare: several times
    as many are drawn as it takes), the last patches are the first free ones in raster order.
    """

    grid: tuple[int, int]
    mask_ratio: float = 0.6
    mask_ratio_spread: float = 0.0  # the ratio is drawn for each image from mask_ratio +- this; 0: the same for all
    max_rectangle: float = 0.3  # of the grid's height and width; GMML's public code

    def __post_init__(self):
        num_kept(self.num_patches, self.mask_ratio)
        low, high = self.mask_ratio - self.mask_ratio_spread, self.mask_ratio + self.mask_ratio_spread
        if self.mask_ratio_spread < 0.0 or low <= 0.0 or round(high * self.num_patches) >= self.num_patches:
            raise ConfigError(
                f"mask_ratio_spread is {self.mask_ratio_spread}; mask_ratio {self.mask_ratio} plus and minus it must "
                f"hide some and not all of the {self.num_patches} patches."
            )
        if not 0.0 < self.max_rectangle <= 1.0:
            raise ConfigError(
                f"max_rectangle is {self.max_rectangle}; it must lie in (0, 1], a share of the grid's sides."
            )

    @property
    def num_patches(self) -> int:
        """Patches of the grid."""
        return self.grid[0] * self.grid[1]

    @property
    def num_rectangles(self) -> int:
        """Rectangles drawn for each image."""
        height, width = self._longest()
        share = min((1 + height) * (1 + width) / 4 / self.num_patches, 0.5)
        # n random rectangles leave (1 - share)^n of the grid free.
        free = max(1.0 - self.mask_ratio - self.mask_ratio_spread, 1.0 / self.num_patches)
        return math.ceil(_SURPLUS * math.log(free) / math.log(1.0 - share))

    def __call__(self, rng: jax.Array, batch: int) -> TokenMask:
        """Masks for `batch` images; with `mask_ratio_spread` rows differ in how many tokens they keep."""
        box_rng, ratio_rng = jax.random.split(rng)
        first = self._first_covering(box_rng, batch)
        rank = jnp.argsort(jnp.argsort(first, axis=1, stable=True), axis=1)
        if self.mask_ratio_spread == 0.0:
            keep = num_kept(self.num_patches, self.mask_ratio)
            return TokenMask.from_bool(rank < self.num_patches - keep, keep)
        low, high = self.mask_ratio - self.mask_ratio_spread, self.mask_ratio + self.mask_ratio_spread
        ratio = jax.random.uniform(ratio_rng, (batch, 1), jnp.float32, low, high)
        count = jnp.maximum(jnp.round(ratio * self.num_patches), 1.0).astype(jnp.int32)
        mask = rank < count
        return TokenMask(mask=mask, order=jnp.argsort(mask, axis=1, stable=True).astype(jnp.int32), num_keep=None)

    def _longest(self) -> tuple[int, int]:
        return tuple(max(1, int(self.max_rectangle * side)) for side in self.grid)

    def _first_covering(self, rng: jax.Array, batch: int) -> jax.Array:
        """The number of the first rectangle over each patch, `[B, N]` int32; their count where there is none."""
        shape = (batch, self.num_rectangles, 1)
        covered = jnp.ones((batch, self.num_rectangles, self.num_patches), bool)
        places = jnp.divmod(jnp.arange(self.num_patches, dtype=jnp.int32)[None, None], self.grid[1])
        rngs = jax.random.split(rng, 4)
        for axis, (place, side, longest) in enumerate(zip(places, self.grid, self._longest(), strict=True)):
            start = jax.random.randint(rngs[2 * axis], shape, 0, side)
            length = jax.random.randint(rngs[2 * axis + 1], shape, 1, longest + 1)
            covered &= (place >= start) & (place < start + length)
        first = jnp.argmax(covered, axis=1).astype(jnp.int32)
        return jnp.where(covered.any(axis=1), first, self.num_rectangles)
