"""Multi-head subspace self-attention: one projection is query, key and value at once (Yu et al. 2023, CRATE)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.layers.attention import dot_product_attention
from mim_jax.layers.dense import DenseGeneral
from mim_jax.layers.initializers import Initializer


class SubspaceAttention(nn.Module):
    """Each head projects the tokens to its subspace and lets them attend to each other there, `softmax(w w^T) w`.

    Parameters: `subspaces/kernel [D, H, Dh]`, without bias, and `out/kernel [H, Dh, D]` with its bias. The logits are
    symmetric. The paper's factor before the output is left to be learned in `out`, as in the official code, where a
    single head, whose subspace is the whole space, has no `out`.
    """

    heads: int
    implementation: str = "xla"
    dtype: Any = jnp.float32
    kernel_init: Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, N, D]` to `[B, N, D]`."""
        width = x.shape[-1]
        w = DenseGeneral(
            (self.heads, width // self.heads),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name="subspaces",
        )(x)
        compressed = dot_product_attention(w, w, w, implementation=self.implementation)
        if self.heads == 1:
            return compressed[:, :, 0]
        return DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, kernel_init=self.kernel_init, name="out")(
            compressed
        )
