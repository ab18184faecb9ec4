"""Multi-head self-attention with fused projections and an exchangeable kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.layers.dense import DenseGeneral, flat_dot_general
from mim_jax.layers.initializers import Initializer
from mim_jax.layers.rotary import Rotation, rotate

IMPLEMENTATIONS = ("xla", "einsum", "cudnn")


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    valid: jax.Array | None = None,
    implementation: str = "xla",
    dropout: Callable[[jax.Array], jax.Array] | None = None,
    edit_logits: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Softmax attention with scale `1/sqrt(Dh)`; the softmax is float32 whatever the inputs are.

    Args:
      query: `[B, Q, H, Dh]`.
      key: `[B, K, H, Dh]`.
      value: `[B, K, H, Dh]`.
      bias: added to the scaled logits, broadcastable to `[B, H, Q, K]`.
      valid: `[B, K]` bool; keys where it is false get no attention.
      implementation: "xla" and "cudnn" are those of `jax.nn.dot_product_attention`; "einsum" is written out here.
      dropout: applied to the attention weights `[B, H, Q, K]`; always computed by "einsum", which has them.
      edit_logits: applied to the float32 logits `[B, H, Q, K]`, biased and masked; always computed by "einsum".

    Returns:
      `[B, Q, H, Dh]` in the dtype of `value`.
    """
    mask = None if valid is None else valid[:, None, None, :]
    if implementation == "einsum" or dropout is not None or edit_logits is not None:
        return _einsum_attention(query, key, value, bias, mask, dropout, edit_logits)
    if bias is not None:
        bias = bias.astype(query.dtype)
    return jax.nn.dot_product_attention(query, key, value, bias=bias, mask=mask, implementation=implementation)


def _einsum_attention(query, key, value, bias, mask, dropout, edit_logits):
    # Heads lead the matrix products ([B, H, N, Dh]), which is the layout CPU kernels batch best.
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum("bhqd,bhkd->bhqk", query * scale, key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + jnp.broadcast_to(bias.astype(jnp.float32), logits.shape)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    if edit_logits is not None:
        logits = edit_logits(logits)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    if dropout is not None:
        weights = dropout(weights)
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
    dropout: float = 0.0  # of attention weights; needs the rng stream "dropout" unless 0
    num_keys: int | None = None  # all tokens attend to the first so many; None: to all

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array | None = None,
        valid: jax.Array | None = None,
        rotation: Rotation | None = None,
        edit_logits: Callable[[jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """Maps `[B, N, D]` to `[B, N, D]`; `bias`, `valid` and `edit_logits` as in `dot_product_attention`.

        `rotation` turns queries and keys by their positions (rotary embedding).
        """
        width = x.shape[-1]
        head_dim = width // self.heads
        project = DenseGeneral(
            (3, self.heads, head_dim),
            use_bias=self.qkv_bias == "all",
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name="qkv",
        )
        qkv = project(x[:, : self.num_keys])
        query, key, value = (qkv[:, :, i] for i in range(3))
        if self.num_keys is not None:
            query = jnp.concatenate([query, self._queries(project, x[:, self.num_keys :])], axis=1)
        if self.qkv_bias == "qv":
            zeros = nn.initializers.zeros_init()
            query_bias = self.param("query_bias", zeros, (self.heads, head_dim), jnp.float32)
            value_bias = self.param("value_bias", zeros, (self.heads, head_dim), jnp.float32)
            query = query + query_bias.astype(query.dtype)[None, None]
            value = value + value_bias.astype(value.dtype)[None, None]
        if rotation is not None:
            of_keys = Rotation(*(angles[:, : self.num_keys] for angles in rotation))
            query, key = rotate(query, rotation), rotate(key, of_keys)
        dropout = nn.Dropout(self.dropout, deterministic=False) if self.dropout > 0.0 else None
        out = dot_product_attention(query, key, value, bias, valid, self.implementation, dropout, edit_logits)
        return DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, kernel_init=self.kernel_init, name="out")(out)

    def _queries(self, project: nn.DenseGeneral, x: jax.Array) -> jax.Array:
        """Those of tokens nobody attends to, `[B, M, H, Dh]`: their keys and values would be computed for nothing."""
        params = project.variables["params"]
        kernel = params["kernel"][:, 0].astype(self.dtype)
        query = flat_dot_general(x.astype(self.dtype), kernel, (((2,), (0,)), ((), ())))
        return query + params["bias"][0].astype(self.dtype)[None, None] if "bias" in params else query
