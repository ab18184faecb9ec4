"""What a convolutional network does at hidden sites. The network is written once and asks one of these rules.

An image is divided into cells, the positions of the coarsest feature map, and a mask says which of them are visible.
A rule decides what the network's features are (`enter`) and how it convolves, normalises, adds and pools them; what it
hands around is opaque to the network, but for `features`. `Sites` is the rule of intact images and the interface:

- `MaskedSites` is SparK's (Tian et al. 2023, section 3.1): maps that are zero at hidden sites after every layer;
- `GatheredSites` gives the same numbers from the visible cells alone.

Another rule may hand around pairs of features and masks, fill hidden sites before a convolution, or let the visible
area grow: a subclass overrides what differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from mim_jax.layers.cells import Cells
from mim_jax.layers.convolution import convolution, max_pool
from mim_jax.masking.visible import Visible

EXECUTIONS = ("gathered", "dense")
Features = Any  # of a rule; `[..., C]` arrays in those of this file


class Sites(struct.PyTreeNode):
    """The rule of intact images: features are maps `[B, H, W, C]`, and all sites are alike."""

    def enter(self, images: jax.Array) -> Features:
        """The network's input from `images [B, H, W, C]`."""
        return images

    def leave(self, x: Features) -> jax.Array:
        """Maps `[B, H, W, C]`."""
        return x

    def features(self, x: Features) -> jax.Array:
        """The array of `x` that has the channels on its last axis."""
        return x

    def convolve(self, x: Features, kernel: jax.Array, bias: jax.Array | None, stride: int) -> Features:
        """Convolves with `kernel`, see `convolution`, and adds `bias [D]`."""
        return _with_bias(convolution(x, kernel, stride), bias)

    def max_pool(self, x: Features, size: int, stride: int) -> Features:
        """The maximum of every window, of features that are nowhere negative."""
        return max_pool(x, size, stride)

    def map(self, function: Callable[[jax.Array], jax.Array], x: Features) -> Features:
        """`function` of every site's channels by itself."""
        return function(x)

    def add(self, x: Features, branch: Features) -> Features:
        """The sum of a residual block."""
        return x + branch

    def moments(self, x: Features) -> tuple[jax.Array, jax.Array, int | jax.Array]:
        """Mean and biased variance `[C]` in float32 over all visible sites of the batch, and their number.

        Under `jit` the batch is the global one, over all devices.
        """
        return _moments(x, x.size // x.shape[-1])

    def pool(self, x: Features) -> jax.Array:
        """The mean over each image's visible sites: `[B, C]` float32."""
        return x.astype(jnp.float32).mean(axis=tuple(range(1, x.ndim - 1)))


class MaskedSites(Sites):
    """SparK's rule on whole maps, which are multiplied by the mask after every layer.

    At a map of another size each cell of the mask stands for the same block of sites.
    """

    visible: jax.Array  # [B, rows, columns] bool

    def enter(self, images: jax.Array) -> jax.Array:
        """Images without hidden pixels."""
        return self._hide(images)

    def convolve(self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None, stride: int) -> jax.Array:
        """As in intact images, and hides what came out at hidden sites."""
        return self._hide(super().convolve(x, kernel, bias, stride))

    def max_pool(self, x: jax.Array, size: int, stride: int) -> jax.Array:
        """Hidden sites take part as zeros."""
        return self._hide(super().max_pool(x, size, stride))

    def map(self, function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        """`function` at visible sites; it need not map zero to zero."""
        return self._hide(function(x))

    def moments(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Over visible sites."""
        side = x.shape[1] // self.visible.shape[1]
        count = jnp.maximum(self.visible.sum(dtype=jnp.float32) * side**2, 1.0)
        return _moments(x, count, self._hide)

    def pool(self, x: jax.Array) -> jax.Array:
        """Over visible sites."""
        side = x.shape[1] // self.visible.shape[1]
        count = jnp.maximum(self.visible.sum(axis=(1, 2), dtype=jnp.float32) * side**2, 1.0)
        return x.astype(jnp.float32).sum(axis=(1, 2)) / count[:, None]

    def _hide(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        rows, columns = self.visible.shape[1:]
        cells = x.reshape(batch, rows, height // rows, columns, width // columns, channels)
        visible = self.visible[:, :, None, :, None, None]
        return jnp.where(visible, cells, jnp.zeros((), x.dtype)).reshape(x.shape)


class GatheredSites(Sites):
    """The numbers of `MaskedSites` from visible cells alone: features are `[B, K, s, s, C]`, K cells of s x s sites.

    A convolution that keeps the map's size sees its cells in tiles that reach into their neighbours; those that halve
    it by windows that overlap, and pooling, are done on whole maps, into which the cells are put for that.
    """

    cells: Cells

    def enter(self, images: jax.Array) -> jax.Array:
        """The visible cells of the images."""
        return self.cells.take(images)

    def leave(self, x: jax.Array) -> jax.Array:
        """Maps that are zero at hidden sites."""
        return self.cells.place(x)

    def convolve(self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None, stride: int) -> jax.Array:
        """At visible sites, with zeros for the hidden ones and beyond the border."""
        return _with_bias(self.cells.convolve(x, kernel, stride), bias)

    def max_pool(self, x: jax.Array, size: int, stride: int) -> jax.Array:
        """Hidden sites take part as zeros."""
        return self.cells.take(max_pool(self.cells.place(x), size, stride))


def sites_of(active: jax.Array | None, num_active: int | None = None, execution: str = "gathered") -> Sites:
    """The rule for images whose visible cells are `active [B, rows, columns]` bool; None: all of them.

    Args:
      active: True where a cell is visible.
      num_active: how many cells of every image are visible, where these are equally many; needed to gather them.
      execution: "gathered" computes the visible cells alone where `num_active` is known, "dense" never.
    """
    if active is None:
        return Sites()
    if num_active is None or execution == "dense":
        return MaskedSites(visible=active)
    batch, rows, columns = active.shape
    hidden = ~active.reshape(batch, rows * columns)
    ids = jnp.argsort(hidden, axis=1, stable=True)[:, :num_active].astype(jnp.int32)
    return GatheredSites(cells=Cells(Visible.from_ids(ids, rows * columns), grid=(rows, columns)))


def _with_bias(x: jax.Array, bias: jax.Array | None) -> jax.Array:
    return x if bias is None else x + jnp.expand_dims(bias, tuple(range(x.ndim - 1)))


def _moments(
    x: jax.Array, count: int | jax.Array, hide: Callable[[jax.Array], jax.Array] = lambda x: x
) -> tuple[jax.Array, jax.Array, int | jax.Array]:
    axes, x = tuple(range(x.ndim - 1)), x.astype(jnp.float32)
    mean = x.sum(axis=axes) / count
    # The variance does not depend on what is taken for the mean, to first order.
    centered = hide(x - jnp.expand_dims(jax.lax.stop_gradient(mean), axes))
    return mean, jnp.square(centered).sum(axis=axes) / count, count
