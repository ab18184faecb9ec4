"""The light UNet of SparK: from feature maps of several scales to an image (Tian et al. 2023, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.layers.compute import Compute
from mim_jax.layers.convolution import Conv
from mim_jax.layers.masked_norm import BatchNorm
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.sites import Sites
from mim_jax.layers.stack import remat_block
from mim_jax.layers.transposed_conv import DoublingConv
from mim_jax.models.backbone import Encoder

_transposed_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # PyTorch calls these inputs its fan_out
_kernel_init = nn.initializers.normal(0.02)  # PyTorch's trunc_normal_ cuts it at +-2, which is never


class UpBlock(nn.Module):
    """Doubles a map by a transposed convolution; then two 3x3 ones with BatchNorm, and a ReLU6 between them."""

    width: int  # of the output
    train: bool = False
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, 2H, 2W, width]`."""
        inner = x.shape[-1]
        x = DoublingConv(inner, _transposed_init, self.compute, name="up")(split_over_batch(x))
        x = jax.nn.relu6(self._conv_norm(x, inner, "1"))
        return split_over_batch(self._conv_norm(x, self.width, "2"))

    def _conv_norm(self, x: jax.Array, features: int, suffix: str) -> jax.Array:
        sites = Sites()
        x = Conv(features, _kernel_init, size=3, compute=self.compute, name=f"conv{suffix}")(x, sites)
        return BatchNorm(compute=self.compute, name=f"norm{suffix}")(x, sites, train=self.train)


class UNetDecoder(nn.Module):
    """Starts from the smallest map; every block doubles it and halves its channels, and the next map is added.

    All blocks cost the same, each about half of a ResNet-50's forward pass at a width of 768: the decoder is most of a
    step.
    """

    widths: tuple[int, ...]  # of what enters each block, and of what leaves the last one
    channels: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], *, train: bool = False) -> jax.Array:
        """Decodes dense maps into images.

        Args:
          maps: from the smallest to the largest, map i `[B, 2^i rows, 2^i columns, widths[i]]`; at most one a block.
          train: see `BatchNorm`.

        Returns:
          Float32 `[B, H, W, channels]`, every side `2^blocks` times that of the smallest map.
        """
        x = maps[0]
        for number, width in enumerate(self.widths[1:]):
            if 0 < number < len(maps):
                x = x + maps[number]
            x = remat_block(UpBlock, self.compute)(width, train, self.compute, name=f"block{number + 1}")(x)
        x = nn.Dense(self.channels, dtype=self.compute.jax_dtype, kernel_init=_kernel_init, name="prediction")(x)
        return x.astype(jnp.float32)


def default_config() -> ConfigDict:
    """The `decoder` section: the width of all published models."""
    return ConfigDict(dict(width=768))


def build(config: ConfigDict, encoder: Encoder) -> UNetDecoder:
    """The decoder for `encoder`, with as many blocks as doublings lead from its tokens to pixels.

    Raises:
      ConfigError: `decoder.width` cannot be halved that often.
    """
    blocks = encoder.patch_size[0].bit_length() - 1
    width = config.decoder.width
    if width < 1 or width % 2**blocks:
        raise ConfigError(
            f"decoder.width is {width}, which cannot be halved {blocks} times, once for each doubling between tokens "
            f"and pixels; choose a multiple of {2**blocks}."
        )
    return UNetDecoder(tuple(width // 2**block for block in range(blocks + 1)), config.channels, encoder.compute)
