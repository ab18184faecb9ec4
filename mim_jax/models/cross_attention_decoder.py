"""A decoder whose queries see encoded tokens and never each other (Fu et al. 2024, CrossMAE, arXiv 2401.14391)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.layers.block import MLP, layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.cross_attention import CrossAttention
from mim_jax.layers.initializers import find_scheme, symmetric_uniform
from mim_jax.layers.materialize import materialize
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.position import PositionTable
from mim_jax.layers.stack import stack_blocks
from mim_jax.models.vit import ViT, check_heads


class CrossBlock(nn.Module):
    """`x += CrossAttention(norm(x), memory); x += MLP(norm(x))`; the memory is taken as it is."""

    heads: int
    mlp_hidden: int
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array) -> tuple[jax.Array, None]:
        """Maps `x [B, Q, D]`, given `memory [B, K, M]`; the second result is a scan's."""
        attention = CrossAttention(
            self.heads,
            implementation=self.compute.attention_kernel,
            dtype=self.compute.jax_dtype,
            kernel_init=find_scheme(self.init_scheme).kernel,
            memory_init=fused_xavier if self.init_scheme == "xavier" else None,
            name="cross_attention",
        )
        mlp = MLP(self.mlp_hidden, self.compute, self.init_scheme, name="mlp")
        x = split_over_batch(x)
        x = x + attention(layer_norm(self.compute, "norm1")(x), memory)
        x = split_over_batch(x + mlp(layer_norm(self.compute, "norm2")(x)))
        return materialize(x) if self.compute.materializes else x, None


class CrossBlockStack(nn.Module):
    """`depth` blocks whose parameters are stacked on a leading layer axis, under `blocks`, like `BlockStack`'s."""

    depth: int
    heads: int
    mlp_hidden: int
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array) -> jax.Array:
        """Applies all blocks to `x [B, Q, D]`; each looks at the same `memory [B, K, M]`."""
        blocks = stack_blocks(CrossBlock, self.depth, self.compute, (nn.broadcast,))(
            self.heads, self.mlp_hidden, self.init_scheme, self.compute, name="blocks"
        )
        dtype = self.compute.jax_dtype
        return blocks(x.astype(dtype), memory.astype(dtype))[0]


class CrossAttentionDecoder(nn.Module):
    """Predicts `output_dim` values for any patches, each from a mask token with its position by itself.

    Its cost grows with the number of patches asked for, not with the image.
    """

    grid: tuple[int, int]
    output_dim: int
    width: int = 512
    depth: int = 8
    heads: int = 16
    mlp_ratio: float = 4.0
    position: str = "sincos"
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, latent: jax.Array, ids: jax.Array) -> jax.Array:
        """Maps `latent [B, K, M]` (class token and all) and patches `ids [B, R]` to float32 `[B, R, output_dim]`."""
        scheme = find_scheme(self.init_scheme)
        mask_token = self.param("mask_token", scheme.token, (self.width,), jnp.float32)
        table, _ = PositionTable(self.grid, self.width, self.position, name="position")()
        x = CrossBlockStack(
            self.depth,
            self.heads,
            int(self.width * self.mlp_ratio),
            self.init_scheme,
            self.compute,
            name="stack",
        )(mask_token[None, None] + table[ids], latent)
        x = layer_norm(self.compute, "norm")(x)
        dtype = self.compute.jax_dtype
        x = nn.Dense(self.output_dim, dtype=dtype, kernel_init=scheme.kernel, name="prediction")(x)
        return x.astype(jnp.float32)


def fused_xavier(rng: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Xavier-uniform of a projection `[in, out]` that is one half of an official Linear to keys and values at once."""
    fan_in, fan_out = shape
    return symmetric_uniform(math.sqrt(6.0 / (fan_in + 2 * fan_out)))(rng, shape, dtype)


def default_config() -> ConfigDict:
    """The `decoder` section."""
    return ConfigDict(dict(width=512, depth=8, heads=16, mlp_ratio=4.0))


def build(config: ConfigDict, encoder: ViT) -> CrossAttentionDecoder:
    """The decoder a run's `config.decoder` asks for, predicting the pixels of `encoder`'s patches.

    Raises:
      ConfigError: impossible sizes.
    """
    decoder = config.decoder
    check_heads(decoder.width, decoder.heads, "decoder")
    if decoder.depth < 1:
        raise ConfigError(f"decoder.depth is {decoder.depth}; a decoder needs at least one block.")
    ph, pw = encoder.patch_size
    return CrossAttentionDecoder(
        grid=encoder.grid,
        output_dim=ph * pw * config.channels,
        width=decoder.width,
        depth=decoder.depth,
        heads=decoder.heads,
        mlp_ratio=decoder.mlp_ratio,
        # Fixed whatever the encoder's are: without positions of its own a decoder could not tell its queries apart.
        position="sincos",
        init_scheme=encoder.init_scheme,
        compute=encoder.compute,
    )
