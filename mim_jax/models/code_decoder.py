"""CAE's decoder: from predicted latents of the hidden patches to logits of their visual tokens (Chen et al. 2022)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.layers.block import BlockStack, layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.initializers import find_scheme
from mim_jax.layers.position import sincos_table
from mim_jax.models.latent_regressor import LatentRegressor


class CodeDecoder(nn.Module):
    """Self-attention among the hidden patches alone: no visible token is seen."""

    grid: tuple[int, int]
    num_codes: int
    width: int = 768
    depth: int = 4
    heads: int = 12
    mlp_ratio: float = 4.0
    layer_scale: float | None = 0.1
    drop_path: float = 0.0
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, latents: jax.Array, ids: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Maps latents `[B, M, R]` of the patches `ids [B, M]` to float32 logits `[B, M, num_codes]`."""
        dtype = self.compute.jax_dtype
        table = jnp.asarray(sincos_table(self.grid, self.width, rows_first=True), dtype)
        x, _ = BlockStack(
            self.depth,
            self.heads,
            int(self.width * self.mlp_ratio),
            qkv_bias="qv",
            layer_scale=self.layer_scale,
            drop_path=self.drop_path,
            init_scheme=self.init_scheme,
            compute=self.compute,
            name="stack",
        )(latents.astype(dtype) + table[ids], deterministic=deterministic)
        x = layer_norm(self.compute, "norm")(x)
        kernel_init = find_scheme(self.init_scheme).kernel
        x = nn.Dense(self.num_codes, dtype=dtype, kernel_init=kernel_init, name="prediction")(x)
        return x.astype(jnp.float32)


def default_config() -> ConfigDict:
    """The `decoder` section; its width, heads and rates are the regressor's."""
    return ConfigDict(dict(depth=4))


def build(config: ConfigDict, regressor: LatentRegressor, num_codes: int) -> CodeDecoder:
    """The decoder a run's `config.decoder` asks for, of what `regressor` predicts.

    Raises:
      ConfigError: impossible sizes.
    """
    depth = config.decoder.depth
    if depth < 1:
        raise ConfigError(f"decoder.depth is {depth}; a decoder needs at least one block.")
    return CodeDecoder(
        grid=regressor.grid,
        num_codes=num_codes,
        width=regressor.width,
        depth=depth,
        heads=regressor.heads,
        mlp_ratio=regressor.mlp_ratio,
        layer_scale=regressor.layer_scale,
        drop_path=regressor.drop_path,
        init_scheme=regressor.init_scheme,
        compute=regressor.compute,
    )
