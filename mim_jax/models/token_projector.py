"""DMJD's visible branch: a projector and a linear predictor on every token by itself (Ma et al. 2023)."""

from __future__ import annotations

import jax
from flax import linen as nn

from mim_jax.layers.block import gelu, layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.initializers import find_scheme


class TokenProjector(nn.Module):
    """Three dense layers with norms and GELUs between, a norm without parameters, and a linear head."""

    width: int
    output_dim: int
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps `[B, K, D]` to float32 `[B, K, output_dim]`."""
        dtype, kernel_init = self.compute.jax_dtype, find_scheme(self.init_scheme).kernel
        x = tokens
        for layer in (1, 2):
            x = nn.Dense(self.width, dtype=dtype, kernel_init=kernel_init, name=f"fc{layer}")(x)
            x = gelu(layer_norm(self.compute, f"norm{layer}")(x))
        x = nn.Dense(self.width, dtype=dtype, kernel_init=kernel_init, name="fc3")(x)
        x = nn.LayerNorm(epsilon=1e-6, dtype=dtype, use_fast_variance=False, use_scale=False, use_bias=False)(x)
        x = nn.Dense(self.output_dim, dtype=dtype, kernel_init=kernel_init, name="prediction")(x)
        return x.astype("float32")
