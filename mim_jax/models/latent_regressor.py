"""CAE's latent regressor: predicts the encoder's latents of hidden patches by cross-attention (Chen et al. 2022)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.layers.block import MLP, drop_path, layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.cross_attention import CrossAttention
from mim_jax.layers.initializers import find_scheme
from mim_jax.layers.materialize import materialize
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.position import sincos_table
from mim_jax.layers.stack import stack_blocks
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models.vit import ViT


class RegressorBlock(nn.Module):
    """Queries look at the visible latents and at themselves; the latents stay as they are.

    Queries, keys and values have a norm each, and only queries and keys have positions. The second norm replaces the
    stream (as in a post-norm block), and the MLP adds to what it gives.
    """

    heads: int
    mlp_hidden: int
    layer_scale: float | None = None  # initial gamma; None: no layer scale
    stochastic: bool = False  # whether drop path is active
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        queries: jax.Array,
        drop_rate: jax.Array,
        visible: jax.Array,
        visible_positions: jax.Array,
        query_positions: jax.Array,
    ) -> tuple[jax.Array, None]:
        """Maps `queries [B, M, R]`, given `visible [B, V, R]` and the positions of both; the None is a scan's."""
        norm = functools.partial(layer_norm, self.compute)
        attention = CrossAttention(
            self.heads,
            key_bias=False,
            implementation=self.compute.attention_kernel,
            dtype=self.compute.jax_dtype,
            kernel_init=find_scheme(self.init_scheme).kernel,
            name="cross_attention",
        )
        queries = split_over_batch(queries)
        source = jnp.concatenate([visible, queries], axis=1)
        positions = jnp.concatenate([visible_positions, query_positions], axis=1)
        branch = attention(
            norm("norm_query")(queries + query_positions),
            norm("norm_key")(source + positions),
            value_memory=norm("norm_value")(source),
        )
        x = norm("norm2")(queries + self._residual(branch, "gamma1", drop_rate))
        branch = MLP(self.mlp_hidden, self.compute, self.init_scheme, name="mlp")(x)
        x = split_over_batch(x + self._residual(branch, "gamma2", drop_rate))
        return materialize(x) if self.compute.materializes else x, None

    def _residual(self, branch: jax.Array, name: str, drop_rate: jax.Array) -> jax.Array:
        if self.layer_scale is not None:
            gamma = self.param(name, nn.initializers.constant(self.layer_scale), (branch.shape[-1],), jnp.float32)
            branch = branch * gamma.astype(branch.dtype)[None, None]
        return drop_path(branch, drop_rate, self.make_rng("drop_path")) if self.stochastic else branch


class RegressorStack(nn.Module):
    """`depth` blocks whose parameters are stacked on a leading layer axis, under `blocks`, like `BlockStack`'s."""

    depth: int
    heads: int
    mlp_hidden: int
    layer_scale: float | None = None
    drop_path: float = 0.0  # of the last block; rates grow linearly
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, queries: jax.Array, *context: jax.Array, deterministic: bool = True) -> jax.Array:
        """Applies all blocks to `queries [B, M, R]`; `context` is what a `RegressorBlock` takes besides."""
        blocks = stack_blocks(RegressorBlock, self.depth, self.compute, (0, *(nn.broadcast,) * 3))(
            heads=self.heads,
            mlp_hidden=self.mlp_hidden,
            layer_scale=self.layer_scale,
            stochastic=self.drop_path > 0.0 and not deterministic,
            init_scheme=self.init_scheme,
            compute=self.compute,
            name="blocks",
        )
        rates = jnp.linspace(0.0, self.drop_path, self.depth, dtype=jnp.float32)
        return blocks(queries, rates, *context)[0]


class LatentRegressor(nn.Module):
    """From one mask token for all hidden patches to a prediction of each one's latent, told apart by position alone."""

    grid: tuple[int, int]
    width: int = 768
    depth: int = 4
    heads: int = 12
    mlp_ratio: float = 4.0
    layer_scale: float | None = 0.1
    drop_path: float = 0.0
    final_norm: bool = True
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, visible: jax.Array, mask: TokenMask, *, deterministic: bool = True) -> jax.Array:
        """Predicts the latents of the patches `mask` hides.

        Args:
          visible: latents of the patches it keeps, `[B, V, R]`, in its order.
          mask: which are which.
          deterministic: no drop path; otherwise the rng stream "drop_path" is needed.

        Returns:
          `[B, M, R]`, in the order of `mask.ids_hidden`.
        """
        dtype = self.compute.jax_dtype
        mask_token = self.param("mask_token", find_scheme(self.init_scheme).token, (self.width,), jnp.float32)
        table = jnp.asarray(sincos_table(self.grid, self.width, rows_first=True), dtype)
        positions = table[mask.ids_hidden]
        x = RegressorStack(
            self.depth,
            self.heads,
            int(self.width * self.mlp_ratio),
            self.layer_scale,
            self.drop_path,
            self.init_scheme,
            self.compute,
            name="stack",
        )(
            jnp.broadcast_to(mask_token.astype(dtype)[None, None], positions.shape),
            visible.astype(dtype),
            table[mask.ids_keep],
            positions,
            deterministic=deterministic,
        )
        return layer_norm(self.compute, "norm")(x) if self.final_norm else x


def default_config() -> ConfigDict:
    """The `regressor` section for ViT-B; what decodes its predictions has the same width, heads and rates."""
    return ConfigDict(
        dict(
            width=768,  # where it is not the encoder's, latents are projected to it
            depth=4,
            heads=12,  # of floor(width / heads) channels each, as in the official code, which has 12 at any width
            mlp_ratio=4.0,
            layer_scale=optional(float, 0.1),
            drop_path=0.1,
        )
    )


def build(config: ConfigDict, encoder: ViT, *, final_norm: bool = True) -> LatentRegressor:
    """The regressor a run's `config.regressor` asks for, on `encoder`'s grid.

    Raises:
      ConfigError: impossible sizes.
    """
    regressor = config.regressor
    if regressor.depth < 1:
        raise ConfigError(f"regressor.depth is {regressor.depth}; a regressor needs at least one block.")
    if regressor.width < 4 or regressor.width % 4:
        raise ConfigError(f"regressor.width is {regressor.width}; sin-cos positions need a multiple of 4.")
    if not 1 <= regressor.heads <= regressor.width:
        raise ConfigError(f"regressor.heads is {regressor.heads}; it must lie in [1, regressor.width].")
    if not 0.0 <= regressor.drop_path < 1.0:
        raise ConfigError(f"regressor.drop_path is {regressor.drop_path}; it must lie in [0, 1).")
    return LatentRegressor(
        grid=encoder.grid,
        width=regressor.width,
        depth=regressor.depth,
        heads=regressor.heads,
        mlp_ratio=regressor.mlp_ratio,
        layer_scale=regressor.layer_scale,
        drop_path=regressor.drop_path,
        final_norm=final_norm,
        init_scheme=encoder.init_scheme,
        compute=encoder.compute,
    )
