"""Convolution blocks that see the visible patches only: "masked convolution" (Gao et al. 2022, section 3.1).

Activations are `[B, K, S, D]`: of each of K visible patches its S positions in raster order. All of a block but the
depthwise convolution acts on single positions, and the convolution reads zeros at hidden ones, so nothing of what
happens there ever reaches a visible patch. It is therefore not computed: a quarter to two fifths of the dense work
remains, with the same numbers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.layers.block import drop_path, gelu, layer_norm
from mim_jax.layers.cells import Cells
from mim_jax.layers.compute import Compute
from mim_jax.layers.convolution import Conv
from mim_jax.layers.dense import Dense
from mim_jax.layers.initializers import torch_default_bias, torch_default_kernel
from mim_jax.layers.patches import patchify, unpatchify
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.sites import GatheredSites, Sites
from mim_jax.layers.stack import stack_blocks
from mim_jax.masking.visible import Visible

_SIZE = 5  # of the depthwise convolutions
EPSILON = 1e-5  # of these blocks' norms: PyTorch's default, unlike the transformer's 1e-6


def pointwise(compute: Compute, features: int, fan_in: int, name: str) -> nn.Dense:
    """A 1x1 convolution as PyTorch initialises it."""
    return Dense(
        features,
        dtype=compute.jax_dtype,
        kernel_init=torch_default_kernel,
        bias_init=torch_default_bias(fan_in),
        name=name,
    )


class PointwiseMLP(nn.Module):
    """Two 1x1 convolutions with an exact GELU between them: `[..., D] -> [..., hidden] -> [..., D]`."""

    hidden: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the two layers."""
        width = x.shape[-1]
        x = gelu(pointwise(self.compute, self.hidden, width, "fc1")(x))
        return pointwise(self.compute, width, self.hidden, "fc2")(x)


class MaskedConvBlock(nn.Module):
    """`x += conv2(depthwise(visible * conv1(norm(x)))); x += MLP(norm(x))`, with drop path on both branches."""

    grid: tuple[int, int]  # patches (rows, columns) of the whole image
    side: int  # positions of a patch along each axis
    mlp_hidden: int
    stochastic: bool = False  # whether drop path is active
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, drop_rate: jax.Array, visible: Visible | None = None) -> tuple[jax.Array, None]:
        """Maps `x [B, K, S, D]`; without `visible`, K is all patches in raster order. The None is for scanning."""
        width = x.shape[-1]
        x = split_over_batch(x)
        branch = pointwise(self.compute, width, width, "conv1")(layer_norm(self.compute, "norm1", EPSILON)(x))
        branch = pointwise(self.compute, width, width, "conv2")(self._convolve(branch, visible))
        x = x + self._residual(branch, drop_rate)
        branch = PointwiseMLP(self.mlp_hidden, self.compute, name="mlp")(layer_norm(self.compute, "norm2", EPSILON)(x))
        return split_over_batch(x + self._residual(branch, drop_rate)), None

    def _convolve(self, x: jax.Array, visible: Visible | None) -> jax.Array:
        patch, width = (self.side, self.side), x.shape[-1]
        convolve = Conv(
            width,
            torch_default_kernel,
            _SIZE,
            depthwise=True,
            use_bias=True,
            bias_init=torch_default_bias(_SIZE**2),
            compute=self.compute,
            name="depthwise",
        )
        if visible is None:
            maps = convolve(unpatchify(x.reshape(*x.shape[:2], -1), patch, self.grid), Sites())
            return patchify(maps, patch).reshape(x.shape)
        cells = x.reshape(*x.shape[:2], *patch, width)
        return convolve(cells, GatheredSites(Cells(visible, self.grid))).reshape(x.shape)

    def _residual(self, branch: jax.Array, drop_rate: jax.Array) -> jax.Array:
        return drop_path(branch, drop_rate, self.make_rng("drop_path")) if self.stochastic else branch


class MaskedConvStage(nn.Module):
    """`depth` blocks whose parameters are stacked on a leading layer axis, under `blocks`."""

    depth: int
    grid: tuple[int, int]
    side: int
    mlp_hidden: int
    drop_path: tuple[float, float] = (0.0, 0.0)  # of the first and the last block
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, visible: Visible | None = None, *, deterministic: bool = True) -> jax.Array:
        """Applies all blocks to `x [B, K, S, D]`."""
        blocks = stack_blocks(MaskedConvBlock, self.depth, self.compute, (0, nn.broadcast))(
            grid=self.grid,
            side=self.side,
            mlp_hidden=self.mlp_hidden,
            stochastic=max(self.drop_path) > 0.0 and not deterministic,
            compute=self.compute,
            name="blocks",
        )
        rates = jnp.linspace(*self.drop_path, self.depth, dtype=jnp.float32)
        x, _ = blocks(x.astype(self.compute.jax_dtype), rates, visible)
        return x
