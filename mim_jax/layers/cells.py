"""The visible cells of feature maps, taken out of them and put back, and convolved without the hidden ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from mim_jax.layers.convolution import convolution, window_padding
from mim_jax.layers.depthwise import pad_maps
from mim_jax.masking.visible import Visible


class Cells(struct.PyTreeNode):
    """Which cells of a grid are visible; a map has s x s sites in each. Visible cells are `[B, K, s, s, C]`."""

    visible: Visible
    grid: tuple[int, int] = struct.field(pytree_node=False)

    # Cells are moved row by row, each a stretch of s * C numbers of a map, so that no axes are ever swapped.

    def take(self, maps: jax.Array) -> jax.Array:
        """The visible cells of `maps [B, H, W, C]`."""
        (rows, columns), (batch, height, _, channels) = self.grid, maps.shape
        side = height // rows
        cells = self._rows(side).take(maps.reshape(batch, height * columns, side * channels))
        return cells.reshape(batch, -1, side, side, channels)

    def place(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` with the cells `x` in their places and zeros elsewhere."""
        (rows, columns), (batch, count, side, _, channels) = self.grid, x.shape
        maps = self._rows(side).place(x.reshape(batch, count * side, side * channels))
        return maps.reshape(batch, rows * side, columns * side, channels)

    def tiles(self, x: jax.Array, halo: int) -> jax.Array:
        """The cells `x` with what surrounds them in `place(x)`, zeros beyond its border: `[B, K, s + 2 halo, ..., C]`.

        Its gradient would scatter; `convolve` has no need of it.
        """
        side, channels = x.shape[-2:]
        maps = pad_maps(self.place(x), halo)
        rows, columns = jnp.divmod(self.visible.ids, self.grid[1])
        shape = (side + 2 * halo, side + 2 * halo, channels)

        def tile(one: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(one, (row * side, column * side, 0), shape)

        return jax.vmap(jax.vmap(tile, (None, 0, 0)))(maps, rows, columns)

    def convolve(self, x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
        """What `convolution` gives at visible cells of `place(x)`.

        Windows that do not overlap stay within their cells. On CPUs others of stride 1 are computed at visible cells
        only, and so are their gradients: that of `x` is the same operation on the result's, with the kernel turned
        round.
        """
        if window_padding(kernel.shape[0]) == 0:
            return _within(x, kernel, stride)
        if stride == 1 and jax.default_backend() == "cpu":
            return _convolve(x, kernel, self)
        # Tiles multiply what is kept in memory, up to 20 times for 7x7 kernels, which may cost more than it saves here.
        return self.take(convolution(self.place(x), kernel, stride))

    def _rows(self, side: int) -> Visible:
        """Where the rows of cells of `side` x `side` sites stand among those of all cells of a map."""
        (rows, columns), (batch, count) = self.grid, self.visible.ids.shape
        row = jnp.arange(side, dtype=jnp.int32)
        cell_row, cell_column = jnp.divmod(self.visible.ids, columns)
        ids = (cell_row[:, :, None] * side + row[None, None]) * columns + cell_column[:, :, None]
        slots = self.visible.slots.reshape(batch, rows, 1, columns)
        slots = jnp.where(slots < count, slots * side + row[None, None, :, None], count * side)
        return Visible(ids=ids.reshape(batch, -1), slots=slots.reshape(batch, -1))


@jax.custom_vjp
def _convolve(x: jax.Array, kernel: jax.Array, cells: Cells) -> jax.Array:
    return _within(cells.tiles(x, kernel.shape[0] // 2), kernel)


def _convolve_gradient(
    inputs: tuple[jax.Array, jax.Array, Cells], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    x, kernel, cells = inputs
    turned = jnp.flip(kernel, (0, 1))
    is_depthwise = kernel.shape[2] < x.shape[-1]
    x_gradient = _convolve(gradient, turned if is_depthwise else turned.swapaxes(2, 3), cells)
    tiles = cells.tiles(x, kernel.shape[0] // 2)
    _, transposed = jax.vjp(lambda kernel: _within(tiles, kernel), kernel)
    return x_gradient, *transposed(gradient), None


_convolve.defvjp(lambda x, kernel, cells: (_convolve(x, kernel, cells), (x, kernel, cells)), _convolve_gradient)


def _within(cells: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves every one of the cells, or tiles, by itself."""
    y = convolution(cells.reshape(-1, *cells.shape[2:]), kernel, stride, pad=False)
    return y.reshape(*cells.shape[:2], *y.shape[1:])
