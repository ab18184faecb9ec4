"""Transformer blocks whose attention stays within windows, shifted in every other one (Liu et al. 2021, 2103.14030).

Activations are `[B, M, S, D]`: of each of M windows its S tokens in raster order. All of a block but the attention acts
on single tokens, so they stay cut from one block to the next, and are put in order again only where windows shift.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mim_jax.layers.attention import SelfAttention
from mim_jax.layers.block import MLP, drop_path, layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.initializers import find_scheme
from mim_jax.layers.materialize import materialize
from mim_jax.layers.patches import patchify, unpatchify
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.position import RelativeBias
from mim_jax.layers.stack import stack_blocks

EPSILON = 1e-5  # of all norms: PyTorch's default
# Kernels are normal, biases zero, and the patch embedding is as PyTorch initialises a convolution: as in DINOv2.
INIT_SCHEME = "dinov2"
_APART = -100.0  # what is added to logits between tokens that are no neighbours; the official code has no infinity


@dataclasses.dataclass(frozen=True)
class Windows:
    """How maps of `grid` tokens are cut into square windows of `side` tokens.

    Where the windows do not tile the grid, it is padded at the bottom and on the right. With `shift` it is first rolled
    towards the top left by so many rows and columns, so that windows lie across the borders of unshifted ones; those at
    the bottom and on the right then hold tokens from opposite sides of the map.
    """

    grid: tuple[int, int]
    side: int
    shift: int = 0

    @classmethod
    def fit(cls, grid: tuple[int, int], side: int, shifted: bool) -> Windows:
        """Windows of `side`, shifted by half of it or not.

        Where they would span the grid's shorter side, they are of that side and not shifted.
        """
        if min(grid) <= side:
            return cls(grid, min(grid))
        return cls(grid, side, side // 2 if shifted else 0)

    @property
    def padded_grid(self) -> tuple[int, int]:
        """`grid`, rounded up to whole windows."""
        rows, columns = (-(-length // self.side) * self.side for length in self.grid)
        return rows, columns

    def cut(self, maps: jax.Array) -> jax.Array:
        """`[B, *grid, D]` to windows `[B, M, S, D]`; what is padded is zero."""
        batch, rows, columns, width = maps.shape
        bottom, right = (padded - length for padded, length in zip(self.padded_grid, (rows, columns), strict=True))
        if bottom or right:
            maps = jnp.pad(maps, ((0, 0), (0, bottom), (0, right), (0, 0)))
        if self.shift:
            maps = jnp.roll(maps, (-self.shift, -self.shift), axis=(1, 2))
        return patchify(maps, (self.side, self.side)).reshape(batch, -1, self.side**2, width)

    def join(self, windows: jax.Array) -> jax.Array:
        """The inverse of `cut`; what was padded is left out."""
        batch, number, size, width = windows.shape
        counts = (self.padded_grid[0] // self.side, self.padded_grid[1] // self.side)
        maps = unpatchify(windows.reshape(batch, number, size * width), (self.side, self.side), counts)
        if self.shift:
            maps = jnp.roll(maps, (self.shift, self.shift), axis=(1, 2))
        return maps[:, : self.grid[0], : self.grid[1]]

    def valid(self) -> np.ndarray | None:
        """Which tokens of the windows are the map's, `[M, S]` bool; None where nothing is padded."""
        if self.padded_grid == self.grid:
            return None
        rows, columns = (np.arange(padded) < own for padded, own in zip(self.padded_grid, self.grid, strict=True))
        return self._tile(np.roll(rows[:, None] & columns[None, :], (-self.shift, -self.shift), axis=(0, 1)))

    def separation(self) -> np.ndarray | None:
        """What is added to the logits so that opposite sides of the map do not meet: -100 or 0, float32 `[M, S, S]`.

        None without a shift. Padded tokens are of the map like all others, as in the official code.
        """
        if not self.shift:
            return None
        # Of the rolled map: all but the last windows, and the two sides of the border through these.
        rows, columns = (
            np.searchsorted([length - self.side, length - self.shift], np.arange(length), side="right")
            for length in self.padded_grid
        )
        regions = self._tile(3 * rows[:, None] + columns[None, :])
        return np.where(regions[:, :, None] == regions[:, None, :], 0.0, _APART).astype(np.float32)

    def _tile(self, table: np.ndarray) -> np.ndarray:
        """A map `[rows, columns]`, padded and rolled, as windows `[M, S]`."""
        return patchify(table[None, :, :, None], (self.side, self.side))[0]


class WindowBlock(nn.Module):
    """`x += Attention(norm(x)); x += MLP(norm(x))` with attention inside each window, and drop path on both branches.

    Logits are biased by a table of relative positions, one a block.
    """

    windows: Windows
    heads: int
    mlp_hidden: int
    stochastic: bool = False  # whether drop path is active
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, drop_rate: jax.Array) -> jax.Array:
        """Maps windows `[B, M, S, D]` to the same shape; padded tokens have no effect on the others' output."""
        x = split_over_batch(x)
        x = x + self._residual(self._attend(layer_norm(self.compute, "norm1", EPSILON)(x)), drop_rate)
        mlp = MLP(self.mlp_hidden, self.compute, INIT_SCHEME, name="mlp")
        branch = mlp(layer_norm(self.compute, "norm2", EPSILON)(x))
        x = split_over_batch(x + self._residual(branch, drop_rate))
        return materialize(x) if self.compute.materializes else x

    def _attend(self, x: jax.Array) -> jax.Array:
        batch, number, size, width = x.shape
        if (valid := self.windows.valid()) is not None:
            # Padding is zero after the norm, and a key like any other: so are the models trained that are fine-tuned.
            x = jnp.where(valid[None, :, :, None], x, jnp.zeros((), x.dtype))
        side, kernel_init = self.windows.side, find_scheme(INIT_SCHEME).kernel
        bias = RelativeBias((side, side), self.heads, False, kernel_init, name="relative_bias")()
        if (separation := self.windows.separation()) is not None:
            bias = bias + separation[:, None]
            shape = (batch, *bias.shape)
            bias = jnp.broadcast_to(bias[None], shape).reshape(batch * number, *shape[2:])
        attention = SelfAttention(
            self.heads,
            implementation=self.compute.attention_kernel,
            dtype=self.compute.jax_dtype,
            kernel_init=kernel_init,
            name="attention",
        )
        return attention(x.reshape(batch * number, size, width), bias).reshape(x.shape)

    def _residual(self, branch: jax.Array, drop_rate: jax.Array) -> jax.Array:
        return drop_path(branch, drop_rate, self.make_rng("drop_path")) if self.stochastic else branch


class WindowPair(nn.Module):
    """A block with windows and one with shifted ones: what is repeated."""

    grid: tuple[int, int]
    side: int
    heads: int
    mlp_hidden: int
    stochastic: bool = False
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, drop_rates: jax.Array) -> tuple[jax.Array, None]:
        """Maps unshifted windows `[B, M, S, D]`; `drop_rates [2]` are those of the two. The None is for scanning."""
        block = functools.partial(
            WindowBlock,
            heads=self.heads,
            mlp_hidden=self.mlp_hidden,
            stochastic=self.stochastic,
            compute=self.compute,
        )
        even, odd = (Windows.fit(self.grid, self.side, shifted) for shifted in (False, True))
        x = _cut_again(block(even, name="even")(x, drop_rates[0]), even, odd)
        x = _cut_again(block(odd, name="odd")(x, drop_rates[1]), odd, even)
        return x, None


def _cut_again(x: jax.Array, before: Windows, after: Windows) -> jax.Array:
    """Windows `[B, M, S, D]` of one kind as those of another."""
    if before == after:
        return x
    if jax.default_backend() != "cpu":
        return after.cut(before.join(x))
    # Left to itself XLA:CPU moves tokens about anew wherever they are read.
    return materialize(after.cut(before.join(materialize(x))))


class WindowStack(nn.Module):
    """Pairs of blocks with windows of `side` tokens.

    Their parameters are stacked on a leading axis, the number of the pair, under `blocks`.
    """

    side: int
    heads: int
    mlp_hidden: int
    drop_rates: tuple[float, ...]  # of every block, in order: an even number
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Applies all blocks to maps `[B, H, W, D]`; drop path needs the rng stream "drop_path"."""
        windows = Windows.fit(x.shape[1:3], self.side, shifted=False)
        rates = jnp.asarray(self.drop_rates, jnp.float32).reshape(-1, 2)
        pairs = stack_blocks(WindowPair, len(rates), self.compute, (0,))(
            grid=windows.grid,
            side=self.side,
            heads=self.heads,
            mlp_hidden=self.mlp_hidden,
            stochastic=max(self.drop_rates) > 0.0 and not deterministic,
            compute=self.compute,
            name="blocks",
        )
        x, _ = pairs(windows.cut(x), rates)
        return windows.join(x)
