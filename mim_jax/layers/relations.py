"""What a transformer block attends to, computed anew from the block's input and parameters.

A relation of one layer costs one dense layer this way, where keeping the attention of all layers would cost their fast
kernels and memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn


class AttentionInputs(NamedTuple):
    """Queries, keys and values of a block, each `[B, H, N, Dh]` float32."""

    query: jax.Array
    key: jax.Array
    value: jax.Array


def layer_params(stack: Any, layer: int) -> Any:
    """Parameters of one block of a `BlockStack`'s."""
    return jax.tree.map(lambda x: x[layer], stack["blocks"])


def attention_inputs(block: Any, x: jax.Array, *, norm_epsilon: float = 1e-6, dtype: Any = jnp.float32):
    """The `AttentionInputs` of a pre-norm block with parameters `block` for its input `x [B, N, D]`."""
    attention = block["attention"]
    features = attention["qkv"]["kernel"].shape[1:]
    norm = nn.LayerNorm(epsilon=norm_epsilon, dtype=dtype, use_fast_variance=False)
    project = nn.DenseGeneral(features, use_bias="bias" in attention["qkv"], dtype=dtype)
    qkv = project.apply({"params": attention["qkv"]}, norm.apply({"params": block["norm1"]}, x.astype(dtype)))
    query, key, value = (jnp.swapaxes(qkv[:, :, i], 1, 2).astype(jnp.float32) for i in range(3))
    if "query_bias" in attention:
        query = query + attention["query_bias"][None, :, None]
        value = value + attention["value_bias"][None, :, None]
    return AttentionInputs(query, key, value)


def attention_logits(query: jax.Array, key: jax.Array) -> jax.Array:
    """`Q K^T / sqrt(Dh)`, `[B, H, Q, K]` float32."""
    return jnp.einsum("bhqd,bhkd->bhqk", query * query.shape[-1] ** -0.5, key)


def attention_map(query: jax.Array, key: jax.Array) -> jax.Array:
    """`softmax(Q K^T / sqrt(Dh))`, `[B, H, Q, K]` float32."""
    return jax.nn.softmax(attention_logits(query, key), axis=-1)
