"""MAE's decoder: a light transformer over encoded visible tokens and mask tokens (He et al. 2022, section 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.layers.block import AttentionEdit, BlockStack, layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.dense import Dense
from mim_jax.layers.initializers import find_scheme
from mim_jax.layers.position import PositionTable, decoder_position
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models.vit import ViT, check_heads


class PixelDecoder(nn.Module):
    """Projects the latent, fills in mask tokens, adds positions, applies blocks and predicts `output_dim` per patch."""

    grid: tuple[int, int]
    output_dim: int
    width: int = 512
    depth: int = 8
    heads: int = 16
    mlp_ratio: float = 4.0
    class_token: bool = True
    position: str = "sincos"
    init_scheme: str = "xavier"
    compute: Compute = Compute()
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, latent: jax.Array, mask: TokenMask, edit: AttentionEdit | None = None) -> jax.Array:
        """Maps `latent [B, (1 +) K, D]` to float32 predictions `[B, N, output_dim]` for all patches in raster order.

        `edit` changes every block's attention logits (see `AttentionEdit`).
        """
        return self.predict(self.fill_in(latent, mask), edit=edit)

    def fill_in(self, latent: jax.Array, mask: TokenMask | None) -> jax.Array:
        """`[B, (1 +) N, width]`: the projected latent in its places, mask tokens elsewhere, all with their positions.

        Without a mask the latent is that of all patches in raster order.
        """
        scheme = find_scheme(self.init_scheme)
        dtype = self.compute.jax_dtype
        x = Dense(self.width, dtype=dtype, kernel_init=scheme.kernel, name="embed")(latent)
        mask_token = self.param("mask_token", scheme.token, (self.width,), jnp.float32)
        table, class_row = PositionTable(self.grid, self.width, self.position, self.class_token, name="position")()
        prefix = int(self.class_token)
        tokens = x[:, prefix:] if mask is None else mask.restore(x[:, prefix:], mask_token)
        if table is not None:
            tokens = tokens + table[None].astype(tokens.dtype)
        if prefix:
            class_token = x[:, :1] if class_row is None else x[:, :1] + class_row[None, None].astype(x.dtype)
            tokens = jnp.concatenate([class_token, tokens], axis=1)
        return tokens

    def transform(self, tokens: jax.Array, name: str = "", edit: AttentionEdit | None = None) -> jax.Array:
        """The blocks on what `fill_in` gives, before norm and head; `name` precedes that of their parameters."""
        x, _ = BlockStack(
            self.depth,
            self.heads,
            int(self.width * self.mlp_ratio),
            init_scheme=self.init_scheme,
            compute=self.compute,
            norm_epsilon=self.norm_epsilon,
            name=f"{name}stack",
        )(tokens, edit=edit)
        return x

    def predict(self, tokens: jax.Array, name: str = "", edit: AttentionEdit | None = None) -> jax.Array:
        """Blocks, norm and head on what `fill_in` gives; `name` precedes those of their parameters."""
        x = self.transform(tokens, name, edit)
        x = layer_norm(self.compute, f"{name}norm", self.norm_epsilon)(x)
        kernel_init = find_scheme(self.init_scheme).kernel
        head = Dense(self.output_dim, dtype=self.compute.jax_dtype, kernel_init=kernel_init, name=f"{name}prediction")
        return head(x[:, int(self.class_token) :]).astype(jnp.float32)


class DecoderTrunk(PixelDecoder):
    """A decoder without norm and head, for what compares its residual stream with another's (G2SD)."""

    @nn.compact
    def __call__(self, latent: jax.Array, mask: TokenMask) -> jax.Array:
        """Maps `latent [B, (1 +) K, D]` to the last block's output `[B, (1 +) N, width]`, patches in raster order."""
        return self.transform(self.fill_in(latent, mask))


def default_config() -> ConfigDict:
    """The `decoder` section of every model size of the paper."""
    return ConfigDict(dict(width=512, depth=8, heads=16, mlp_ratio=4.0))


def build(config: ConfigDict, encoder: ViT, kind: type[PixelDecoder] = PixelDecoder) -> PixelDecoder:
    """The decoder a run's `config.decoder` asks for, predicting the pixels of `encoder`'s patches."""
    decoder = config.decoder
    check_heads(decoder.width, decoder.heads, "decoder")
    ph, pw = encoder.patch_size
    return kind(
        grid=encoder.grid,
        output_dim=ph * pw * config.channels,
        width=decoder.width,
        depth=decoder.depth,
        heads=decoder.heads,
        mlp_ratio=decoder.mlp_ratio,
        class_token=encoder.class_token,
        position=decoder_position(encoder.position),
        init_scheme=encoder.init_scheme,
        compute=encoder.compute,
        norm_epsilon=encoder.norm_epsilon,
    )
