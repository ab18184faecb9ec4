"""Two views of an image that together hide more of it than one: disjoint masking (Ma et al. 2023, DMJD)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mim_jax.errors import ConfigError
from mim_jax.masking.random import check_cells
from mim_jax.masking.token_mask import TokenMask, num_kept

NUM_VIEWS = 2


class DisjointViews(NamedTuple):
    """The masks of the two views of each image; any two `TokenMask`s that keep equally many tokens do as well.

    By hand, `DisjointCellSampler.from_draws` makes them of the numbers the official code draws, and
    `TokenMask.from_order(ids_shuffle, num_keep)` one view of the order it sorts the tokens into.
    """

    first: TokenMask
    second: TokenMask

    def merged(self) -> TokenMask:
        """One mask for `2 B` rows, both views of an image side by side, so that a split batch stays where it is."""
        pairs = [(self.first.mask, self.second.mask), (self.first.order, self.second.order)]
        mask, order = (jnp.stack(pair, axis=1).reshape(-1, pair[0].shape[1]) for pair in pairs)
        return TokenMask(mask=mask, order=order, num_keep=self.first.num_keep)


@dataclasses.dataclass(frozen=True)
class DisjointCellSampler:
    """Samples `DisjointViews` over cells of tokens, each view with `mask_ratio` of the cells hidden.

    The second view hides `min(prediction_ratio - mask_ratio, mask_ratio)` of the cells among those the first one shows;
    with a `prediction_ratio` of 1 and a `mask_ratio` of at least a half, the two have no visible token in common and
    hide every token at least once. Numbers of cells are truncated as in the official code.

    Which of the cells are hidden again is drawn once for the whole batch, by their rank in each image's own order, as
    in the official code.
    """

    grid: tuple[int, int]  # tokens (rows, columns)
    cell: tuple[int, int] = (2, 2)  # tokens of a cell, hidden or shown together
    mask_ratio: float = 0.6
    prediction_ratio: float = 1.0  # share of the image that the two views hide together

    def __post_init__(self):
        check_cells(self.grid, self.cell)
        num_kept(self.num_cells, self.mask_ratio)
        if not self.mask_ratio <= self.prediction_ratio <= 1.0:
            raise ConfigError(
                f"prediction_ratio is {self.prediction_ratio}; choose one from mask_ratio, {self.mask_ratio}, to 1."
            )

    @property
    def num_cells(self) -> int:
        """Cells of the grid."""
        return (self.grid[0] // self.cell[0]) * (self.grid[1] // self.cell[1])

    @property
    def visible_cells(self) -> int:
        """Cells each view shows."""
        return num_kept(self.num_cells, self.mask_ratio)

    @property
    def exchanged_cells(self) -> int:
        """Cells the second view hides of those the first shows."""
        return int(min(self.prediction_ratio - self.mask_ratio, self.mask_ratio) * self.num_cells)

    def __call__(self, rng: jax.Array, batch: int) -> DisjointViews:
        """Views of `batch` images."""
        noise_rng, visible_rng, hidden_rng = jax.random.split(rng, 3)
        return self.from_draws(
            jax.random.uniform(noise_rng, (batch, self.num_cells), jnp.float32),
            jax.random.permutation(visible_rng, self.visible_cells),
            jax.random.permutation(hidden_rng, self.num_cells - self.visible_cells),
        )

    def from_draws(self, noise: jax.Array, visible_shuffle: jax.Array, hidden_shuffle: jax.Array) -> DisjointViews:
        """The views that follow from random numbers.

        Args:
          noise: `[B, cells]`; the first view shows each image's cells of smallest noise.
          visible_shuffle: a permutation of the `visible_cells`; the second view hides the first of them.
          hidden_shuffle: a permutation of the other cells; the second view hides the first of them again.
        """
        order = jnp.argsort(noise, axis=1, stable=True)
        visible = order[:, : self.visible_cells][:, visible_shuffle]
        hidden = order[:, self.visible_cells :][:, hidden_shuffle]
        exchanged = self.exchanged_cells
        again = self.num_cells - self.visible_cells - exchanged
        second = [visible[:, exchanged:], hidden[:, again:], visible[:, :exchanged], hidden[:, :again]]
        return DisjointViews(self._view(order), self._view(jnp.concatenate(second, axis=1)))

    def _view(self, cells: jax.Array) -> TokenMask:
        """From an order of the cells, visible ones first: the first token of each cell, then the second of each, ..."""
        (height, width), columns, keep = self.cell, self.grid[1], self.visible_cells
        row, column = jnp.divmod(cells, columns // width)
        corner = row * (height * columns) + column * width
        tokens = [corner + (y * columns + x) for y in range(height) for x in range(width)]
        order = jnp.concatenate([ids[:, :keep] for ids in tokens] + [ids[:, keep:] for ids in tokens], axis=1)
        return TokenMask.from_order(order, keep * height * width)
