"""CRATE-MAE's decoder: layers that undo the encoder's, from the last to the first (Pai et al. 2024, section 3.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.layers.block import layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.initializers import find_scheme
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.stack import stack_blocks
from mim_jax.models.crate import EPSILON, Crate, subspace_attention
from mim_jax.models.vit import check_heads


class CrateDecoderBlock(nn.Module):
    """`y = linear(norm(x)); x = y - MSSA(norm(y))`: first the sparsifying step is undone, then the compression."""

    heads: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        """Maps `x [B, T, D]`; the second output is what a scan collects: nothing."""
        x = layer_norm(self.compute, "norm1", EPSILON)(split_over_batch(x))
        y = nn.Dense(
            x.shape[-1],
            use_bias=False,
            dtype=self.compute.jax_dtype,
            kernel_init=nn.initializers.he_uniform(),  # a dictionary's
            name="linear",
        )(x)
        compression = subspace_attention(self.heads, self.compute)(layer_norm(self.compute, "norm2", EPSILON)(y))
        return split_over_batch(y - compression), None


class CrateDecoderStack(nn.Module):
    """`depth` decoder blocks whose parameters are stacked on a leading layer axis, under `blocks`."""

    depth: int
    heads: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies all blocks to `x [B, T, D]`."""
        blocks = stack_blocks(CrateDecoderBlock, self.depth, self.compute, ())
        return blocks(heads=self.heads, compute=self.compute, name="blocks")(x)[0]


class CrateDecoder(nn.Module):
    """Blocks, norm and linear head on the encoder's output as it is: no embedding, mask tokens or positions anew."""

    output_dim: int
    depth: int
    heads: int
    class_token: bool = True
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, latent: jax.Array) -> jax.Array:
        """Maps `latent [B, (1 +) N, D]` to float32 predictions `[B, N, output_dim]`."""
        x = CrateDecoderStack(self.depth, self.heads, self.compute, name="stack")(latent)
        x = layer_norm(self.compute, "norm")(x)
        head = nn.Dense(
            self.output_dim,
            dtype=self.compute.jax_dtype,
            kernel_init=find_scheme("xavier").kernel,
            name="prediction",
        )
        return head(x[:, int(self.class_token) :]).astype(jnp.float32)


def default_config() -> ConfigDict:
    """The `decoder` section: the encoder's sizes, as in every official model."""
    return ConfigDict(
        dict(
            width=optional(int),  # None: the encoder's, and no other is possible
            depth=optional(int),  # None: the encoder's
            heads=optional(int),  # None: the encoder's
        )
    )


def build(config: ConfigDict, encoder: Crate) -> CrateDecoder:
    """The decoder a run's `config.decoder` asks for, predicting the pixels of `encoder`'s patches.

    Raises:
      ConfigError: a width other than the encoder's, no block, or a number of heads that does not divide the width.
    """
    decoder = config.decoder
    if decoder.width not in (None, encoder.width):
        raise ConfigError(
            f"decoder.width is {decoder.width}, but the decoder works on the encoder's tokens as they are; set it to "
            f"model.width, {encoder.width}, or None."
        )
    depth = encoder.depth if decoder.depth is None else decoder.depth
    heads = encoder.heads if decoder.heads is None else decoder.heads
    if depth < 1:
        raise ConfigError(f"decoder.depth is {depth}; a decoder needs at least one block.")
    check_heads(encoder.width, heads, "decoder")
    ph, pw = encoder.patch_size
    return CrateDecoder(
        output_dim=ph * pw * config.channels,
        depth=depth,
        heads=heads,
        class_token=encoder.class_token,
        compute=encoder.compute,
    )
