"""Multi-head attention from one sequence to another."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.layers.attention import dot_product_attention
from mim_jax.layers.dense import DenseGeneral
from mim_jax.layers.initializers import Initializer
from mim_jax.layers.rotary import Rotation, rotate


class CrossAttention(nn.Module):
    """Queries from one sequence, keys and values from another, which may have another width.

    Parameters: `query/kernel [D, H, Dh]`, `key/kernel [M, H, Dh]`, `value/kernel [M, H, Dh]` and `out/kernel
    [H, Dh, D]`, with biases. Name the module so that its path ends in "attention": the rules that shard parameters
    find it by that.
    """

    heads: int
    use_bias: bool = True  # of query, key and value; the output projection always has one
    implementation: str = "xla"
    dtype: Any = jnp.float32
    kernel_init: Initializer = nn.initializers.xavier_uniform()  # of query, key and value
    out_init: Initializer | None = None  # of the output projection; None: `kernel_init`
    memory_init: Initializer | None = None  # of key and value; None: `kernel_init`
    dropout: float = 0.0  # of attention weights; needs the rng stream "dropout" unless 0
    key_bias: bool = True  # False: the key has none even where `use_bias` (softmax does not see it)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array,
        bias: jax.Array | None = None,
        valid: jax.Array | None = None,
        rotation: Rotation | None = None,
        memory_rotation: Rotation | None = None,
        value_memory: jax.Array | None = None,
    ) -> jax.Array:
        """Attends from `x [B, Q, D]` to `memory [B, K, M]`.

        Args:
          x: what asks.
          memory: what is looked at.
          bias: added to the scaled logits, broadcastable to `[B, H, Q, K]`.
          valid: `[B, K]` bool; tokens of `memory` where it is false get no attention.
          rotation: turns the queries by their positions (rotary embedding).
          memory_rotation: turns the keys by theirs.
          value_memory: what values are made of, `[B, K, M]`; None: `memory`, of which the keys are made.

        Returns:
          `[B, Q, D]`.
        """
        width = x.shape[-1]

        def project(tokens: jax.Array, name: str, kernel_init: Initializer, use_bias: bool) -> jax.Array:
            return DenseGeneral(
                (self.heads, width // self.heads),
                use_bias=use_bias,
                dtype=self.dtype,
                kernel_init=kernel_init,
                name=name,
            )(tokens)

        memory_init = self.kernel_init if self.memory_init is None else self.memory_init
        query = project(x, "query", self.kernel_init, self.use_bias)
        key = project(memory, "key", memory_init, self.use_bias and self.key_bias)
        value = project(memory if value_memory is None else value_memory, "value", memory_init, self.use_bias)
        if rotation is not None:
            query = rotate(query, rotation)
        if memory_rotation is not None:
            key = rotate(key, memory_rotation)
        dropout = nn.Dropout(self.dropout, deterministic=False) if self.dropout > 0.0 else None
        out = dot_product_attention(query, key, value, bias, valid, self.implementation, dropout)
        out_init = self.kernel_init if self.out_init is None else self.out_init
        return DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, kernel_init=out_init, name="out")(out)
