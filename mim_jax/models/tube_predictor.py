"""V-JEPA's predictor: a narrow transformer from a clip's context to what is at its target tubes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.layers.block import BlockStack, layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.initializers import find_scheme
from mim_jax.layers.position import decoder_position
from mim_jax.masking.multiblock3d import ClipMask
from mim_jax.models.video_vit import VideoViT, positions
from mim_jax.models.vit import check_heads


class TubePredictor(nn.Module):
    """Predicts `output_dim` numbers at every target tube; masks of different kinds have mask tokens of their own."""

    grid: tuple[int, ...]  # see `VideoViT.position_grid`
    output_dim: int
    width: int = 384
    depth: int = 12
    heads: int = 16
    mlp_ratio: float = 4.0
    num_mask_tokens: int = 2
    position: str = "sincos"
    init_scheme: str = "normal"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, latent: jax.Array, mask: ClipMask, kind: int) -> jax.Array:
        """Maps the encoded context `[B, Kc, D]` of masks of the given `kind` to float32 `[B, Kp, output_dim]`."""
        kernel_init = find_scheme(self.init_scheme).kernel
        dtype = self.compute.jax_dtype
        table = positions(self.grid, self.width, self.position)
        zeros = nn.initializers.zeros_init()
        mask_tokens = self.param("mask_tokens", zeros, (self.num_mask_tokens, self.width), jnp.float32)

        context = nn.Dense(self.width, dtype=dtype, kernel_init=kernel_init, name="embed")(latent)
        context = context + table[mask.context].astype(dtype)
        queries = mask_tokens[kind % self.num_mask_tokens][None, None] + table[mask.targets]
        x = jnp.concatenate([context, queries.astype(dtype)], axis=1)
        x, _ = BlockStack(
            self.depth,
            self.heads,
            int(self.width * self.mlp_ratio),
            init_scheme=self.init_scheme,
            compute=self.compute,
            name="stack",
        )(x, None, _valid(mask))
        x = layer_norm(self.compute, "norm")(x[:, context.shape[1] :])
        x = nn.Dense(self.output_dim, dtype=dtype, kernel_init=kernel_init, name="projection")(x)
        return x.astype(jnp.float32)


def _valid(mask: ClipMask) -> jax.Array | None:
    """Which slots of context and targets together are in use, `[B, Kc + Kp]`; None: all."""
    if mask.context_valid is None and mask.targets_valid is None:
        return None
    pairs = ((mask.context, mask.context_valid), (mask.targets, mask.targets_valid))
    return jnp.concatenate([jnp.ones(ids.shape, bool) if valid is None else valid for ids, valid in pairs], axis=1)


def default_config() -> ConfigDict:
    """The `predictor` section of V-JEPA, whatever the encoder's size."""
    return ConfigDict(
        dict(
            width=384,
            depth=12,
            heads=16,
            mlp_ratio=4.0,
            num_mask_tokens=optional(int),  # learned tokens that mask kinds share in turn; None: one for each kind
        )
    )


def build(config: ConfigDict, section: str, encoder: VideoViT, *, output_dim: int, num_kinds: int) -> TubePredictor:
    """The predictor that section `section` of a run's `config` asks for, on `encoder`'s grid.

    Raises:
      ConfigError: sizes that do not divide, or no mask token.
    """
    predictor = config[section]
    check_heads(predictor.width, predictor.heads, section)
    num_mask_tokens = num_kinds if predictor.num_mask_tokens is None else predictor.num_mask_tokens
    if not 1 <= num_mask_tokens <= num_kinds:
        raise ConfigError(
            f"{section}.num_mask_tokens is {num_mask_tokens}; there are {num_kinds} kinds of masks to share them, so "
            f"it must be 1 to {num_kinds}, or None for one each."
        )
    return TubePredictor(
        grid=encoder.position_grid,
        output_dim=output_dim,
        width=predictor.width,
        depth=predictor.depth,
        heads=predictor.heads,
        mlp_ratio=predictor.mlp_ratio,
        num_mask_tokens=num_mask_tokens,
        position=decoder_position(encoder.position),
        init_scheme=encoder.init_scheme,
        compute=encoder.compute,
    )
