"""From sparse feature maps to dense ones, for a decoder (SparK: Tian et al. 2023, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.layers.block import layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.convolution import Conv
from mim_jax.layers.initializers import one_sigma_normal, torch_default_bias, torch_default_kernel
from mim_jax.layers.masked_norm import BatchNorm
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.sites import MaskedSites, Sites

NORMS = ("batch_norm", "layer_norm")


class DensifyMap(nn.Module):
    """Normalises a map at its visible sites, puts a learned token at the others, and convolves to another width."""

    width: int
    size: int  # of the convolution
    norm: str = "batch_norm"  # one of `NORMS`
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, active: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps `x [B, H, W, C]` to `[B, H, W, width]`; see `Densify`."""
        channels = x.shape[-1]
        token = self.param("mask_token", one_sigma_normal, (channels,), jnp.float32)
        if self.norm == "batch_norm":
            x = BatchNorm(compute=self.compute, name="norm")(x, MaskedSites(visible=active), train=train)
        else:
            x = layer_norm(self.compute, "norm")(x)
        x = jnp.where(_at_sites(active, x), x, token.astype(x.dtype)[None, None, None])
        if self.size == 1 and channels == self.width:
            return x
        projection = Conv(
            self.width,
            torch_default_kernel,
            self.size,
            use_bias=True,
            bias_init=torch_default_bias(self.size**2 * channels),
            compute=self.compute,
            name="projection",
        )
        return projection(x, Sites())


class Densify(nn.Module):
    """Makes maps that a network left empty at hidden sites dense, each with a norm, token and projection of its own.

    The smallest map is projected position by position, unless it has the width already, the others by 3x3.
    """

    widths: tuple[int, ...]  # of the results
    norm: str = "batch_norm"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], active: jax.Array, *, train: bool = False) -> list[jax.Array]:
        """Densifies as many maps as there are widths.

        Args:
          maps: `[B, H_i, W_i, C_i]`, from the smallest to the largest, zero at hidden sites.
          active: `[B, rows, columns]` bool, the visible sites of the smallest map; in the others, each stands for the
            block of sites at its place.
          train: see `BatchNorm`.

        Returns:
          `[B, H_i, W_i, widths[i]]` each.
        """
        dense = []
        for number, (x, width) in enumerate(zip(maps, self.widths, strict=False)):
            densify = DensifyMap(width, 3 if number else 1, self.norm, self.compute, name=f"map{number + 1}")
            dense.append(split_over_batch(densify(x, active, train=train)))
        return dense


def _at_sites(active: jax.Array, x: jax.Array) -> jax.Array:
    """`active [B, rows, columns]` at the sites of `x [B, H, W, C]`: `[B, H, W, 1]`."""
    side = x.shape[1] // active.shape[1]
    return jnp.repeat(jnp.repeat(active, side, axis=1), side, axis=2)[..., None]
