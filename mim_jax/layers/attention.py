"""Multi-head self-attention with fused projections and an exchangeable kernel."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.layers.initializers import Initializer

IMPLEMENTATIONS = ("xla", "einsum", "cudnn")


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    valid: jax.Array | None = None,
    implementation: str = "xla",
) -> jax.Array:
    """Softmax attention with scale `1/sqrt(Dh)`; the softmax is float32 whatever the inputs are.

    Args:
      query: `[B, Q, H, Dh]`.
      key: `[B, K, H, Dh]`.
      value: `[B, K, H, Dh]`.
      bias: added to the scaled logits, broadcastable to `[B, H, Q, K]`.
      valid: `[B, K]` bool; keys where it is false get no attention.
      implementation: "xla" and "cudnn" are those of `jax.nn.dot_product_attention`; "einsum" is written out here.

    Returns:
      `[B, Q, H, Dh]` in the dtype of `value`.
    """
    mask = None if valid is None else valid[:, None, None, :]
    if implementation == "einsum":
        return _einsum_attention(query, key, value, bias, mask)
    if bias is not None:
        bias = bias.astype(query.dtype)
    return jax.nn.dot_product_attention(query, key, value, bias=bias, mask=mask, implementation=implementation)


def _einsum_attention(query, key, value, bias, mask):
    # Heads lead the matrix products ([B, H, N, Dh]), which is the layout CPU kernels batch best.
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum("bhqd,bhkd->bhqk", query * scale, key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + jnp.broadcast_to(bias.astype(jnp.float32), logits.shape)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.swapaxes(jnp.einsum("bhqk,bhkd->bhqd", weights, value), 1, 2)


class SelfAttention(nn.Module):
    """Self-attention whose query, key and value come from one fused projection.

    Parameters: `qkv/kernel [D, 3, H, Dh]` (so that heads can be sharded) with the biases `qkv_bias` asks for, and
    `out/kernel [H, Dh, D]`.
    """

    heads: int
    qkv_bias: str = "all"  # "all", "qv" (BEiT and SimMIM: the key has none) or "none"
    implementation: str = "xla"
    dtype: Any = jnp.float32
    kernel_init: Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array | None = None, valid: jax.Array | None = None) -> jax.Array:
        """Maps `[B, N, D]` to `[B, N, D]`; `bias` and `valid` as in `dot_product_attention`."""
        width = x.shape[-1]
        head_dim = width // self.heads
        qkv = nn.DenseGeneral(
            (3, self.heads, head_dim),
            use_bias=self.qkv_bias == "all",
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name="qkv",
        )(x)
        query, key, value = (qkv[:, :, i] for i in range(3))
        if self.qkv_bias == "qv":
            zeros = nn.initializers.zeros_init()
            query_bias = self.param("query_bias", zeros, (self.heads, head_dim), jnp.float32)
            value_bias = self.param("value_bias", zeros, (self.heads, head_dim), jnp.float32)
            query = query + query_bias.astype(query.dtype)[None, None]
            value = value + value_bias.astype(value.dtype)[None, None]
        out = dot_product_attention(query, key, value, bias, valid, self.implementation)
        return nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, kernel_init=self.kernel_init, name="out")(out)
