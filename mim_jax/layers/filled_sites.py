"""Layer masking: a rule for hidden sites with which a trained network can be asked what it makes of a part of an image.

"Towards Improved Input Masking for Convolutional Neural Networks", Balasubramanian and Feizi, ICCV 2023, arXiv
2211.14646; official code SriramB-98/layer_masking.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from mim_jax.errors import ConfigError
from mim_jax.layers.convolution import convolution, max_pool
from mim_jax.layers.sites import Sites

FILLS = ("neighbors", "zeros", "partial")
_EPSILON = 1e-5  # of a mean of neighbours
_SHARE_EPSILON = 1e-8  # of shares of visible sites


class VisibleMap(struct.PyTreeNode):
    """Features and which of their sites are visible; hidden ones are zero."""

    features: jax.Array  # [B, H, W, C]
    visible: jax.Array  # [B, H, W, 1] float32, 1 = visible


class FilledSites(Sites):
    """Features and their mask go through the network together; hidden sites are filled before they are convolved.

    After every layer hidden sites are zero. A convolution's or a pooling's window that sees anything visible makes its
    site visible, so that the visible area grows; a residual sum is visible where both its branches are, which in a
    ResNet ends that growth after the stem. No parameter is needed and none is changed. The mask may be any set of
    pixels. Filled values have no gradient.

    `leave` divides the maps by their visible share, so that their plain mean, which is what an encoder pools, is the
    mean over visible sites. An image that is hidden altogether has features of zero.

    BatchNorm has to use its running statistics. ResNets are the paper's; that it also runs in a ConvNeXt, whose patches
    are filled before their projection, is this project's extension.
    """

    visible: jax.Array  # [B, H, W] bool, of the pixels
    # What a convolution sees of hidden sites: the mean of their "neighbors", ring after ring; "zeros"; or zeros with
    # the result divided by the visible share of its window ("partial" convolution, whose bias the official code cannot
    # handle: here it is added after the division).
    fill: str = struct.field(pytree_node=False, default="neighbors")

    def enter(self, images: jax.Array) -> VisibleMap:
        """Images without hidden pixels, and their mask."""
        if self.fill not in FILLS:
            raise ConfigError(f"The fill is {self.fill!r}; choose one of {', '.join(FILLS)}.")
        return _masked(jnp.asarray(images), jnp.asarray(self.visible[..., None], jnp.float32))

    def leave(self, x: VisibleMap) -> jax.Array:
        """Maps whose mean over all sites is that over visible ones."""
        share = x.visible.mean(axis=(1, 2), keepdims=True)
        return (x.features.astype(jnp.float32) / (share + _SHARE_EPSILON)).astype(x.features.dtype)

    def features(self, x: VisibleMap) -> jax.Array:
        """The maps."""
        return x.features

    def convolve(self, x: VisibleMap, kernel: jax.Array, bias: jax.Array | None, stride: int) -> VisibleMap:
        """As in intact images after filling as many rings as the kernel is wide."""
        size = kernel.shape[1]
        maps = x.features
        if self.fill == "neighbors" and size > 1:  # what a 1x1 convolution makes of filled sites is hidden again
            maps = fill_from_neighbors(maps, x.visible, size)
        y = convolution(maps, kernel, stride)
        if self.fill == "partial":
            ones = jnp.full((size, size, 1, 1), 1.0 / size**2, jnp.float32)
            y = (y.astype(jnp.float32) / (convolution(x.visible, ones, stride) + _SHARE_EPSILON)).astype(y.dtype)
        if bias is not None:
            y = y + bias[None, None, None]
        return _masked(y, max_pool(x.visible, size, stride))

    def max_pool(self, x: VisibleMap, size: int, stride: int) -> VisibleMap:
        """Hidden sites take part as zeros."""
        return _masked(max_pool(x.features, size, stride), max_pool(x.visible, size, stride))

    def map(self, function: Callable[[jax.Array], jax.Array], x: VisibleMap) -> VisibleMap:
        """`function` at visible sites; it need not map zero to zero."""
        return _masked(function(x.features), x.visible)

    def add(self, x: VisibleMap, branch: VisibleMap) -> VisibleMap:
        """Visible is what is visible in both."""
        return _masked(x.features + branch.features, x.visible * branch.visible)

    def moments(self, x: VisibleMap):
        """There are none: the rule is for trained networks.

        Raises:
          ConfigError: always.
        """
        del x
        raise ConfigError("Layer masking is for trained networks, whose BatchNorm has statistics; leave train=False.")

    def pool(self, x: VisibleMap) -> jax.Array:
        """Over visible sites."""
        return self.leave(x).astype(jnp.float32).mean(axis=(1, 2))


def fill_from_neighbors(x: jax.Array, visible: jax.Array, rings: int) -> jax.Array:
    """Fills a hole from its edge inwards, each site by the mean of those of its eight neighbours that have a value.

    Args:
      x: maps `[B, H, W, C]`.
      visible: `[B, H, W, 1]`, 1 = visible, 0 = hidden.
      rings: how many sites deep; what lies deeper is zero.

    Returns:
      `[B, H, W, C]`, unchanged where visible; what is filled has no gradient.
    """
    known = visible.astype(x.dtype)
    x = x * known
    for _ in range(rings):
        count = _box_sum(known)
        x = x + jax.lax.stop_gradient((1.0 - known) * (_box_sum(x) / (count + _EPSILON)))
        known = jnp.clip(known + count, 0.0, 1.0)
    return x


def _box_sum(x: jax.Array) -> jax.Array:
    """The sum over every 3x3 window, with zeros around the map."""
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(x, [(1, 1) if dim == axis else (0, 0) for dim in range(x.ndim)])
        x = sum(jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start in range(3))
    return x


def _masked(x: jax.Array, visible: jax.Array) -> VisibleMap:
    return VisibleMap(features=x * visible.astype(x.dtype), visible=visible)
