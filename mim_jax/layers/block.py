"""The pre-norm transformer block and the stack of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.layers.attention import SelfAttention
from mim_jax.layers.compute import Compute
from mim_jax.layers.dense import Dense
from mim_jax.layers.initializers import find_scheme
from mim_jax.layers.materialize import materialize
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.rotary import Rotation
from mim_jax.layers.stack import stack_blocks

# What a method may do inside every block's attention, `edit(logits, x, layer) -> (logits, report)`: float32 logits
# `[B, H, N, N]` before the softmax, the block's input `[B, N, D]` and its number from 0 (int32 []). What it reports (a
# pytree, or None) is sown as "attention_report" among the "intermediates". Scan and remat take the arrays it uses as
# arguments, so it has to be a `jax.tree_util.Partial` over them.
AttentionEdit = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


def layer_norm(compute: Compute, name: str, epsilon: float = 1e-6) -> nn.LayerNorm:
    """LayerNorm with float32 statistics; the variance is taken about the mean, as PyTorch takes it."""
    return nn.LayerNorm(epsilon=epsilon, dtype=compute.jax_dtype, use_fast_variance=False, name=name)


def drop_path(x: jax.Array, rate: jax.Array, rng: jax.Array) -> jax.Array:
    """Zeroes whole samples of `x [B, ...]` with probability `rate` and rescales the rest (Huang et al. 2016)."""
    keep = 1.0 - rate
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    survives = jax.random.bernoulli(rng, keep, shape)
    return jnp.where(survives, x / keep.astype(x.dtype), jnp.zeros((), x.dtype))


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, `x/2 * (1 + erf(x / sqrt 2))` as PyTorch writes it; JAX's own form with erfc is slow on CPUs."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * jnp.asarray(0.5**0.5, x.dtype)))


def drop_path_rngs(rng: jax.Array | None) -> dict[str, Any]:
    """The arguments that switch a network's drop path on, with `rng` for all of it, or off if there is none."""
    return {"deterministic": rng is None, "rngs": None if rng is None else {"drop_path": rng}}


def quick_gelu(x: jax.Array) -> jax.Array:
    """`x * sigmoid(1.702 x)`, which CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}
MLP_KINDS = (*ACTIVATIONS, "swiglu")


class MLP(nn.Module):
    """Two dense layers with an activation between them: `[..., D] -> [..., hidden] -> [..., D or width]`."""

    hidden: int
    compute: Compute = Compute()
    init_scheme: str = "xavier"
    dropout: float = 0.0  # between the layers; needs the rng stream "dropout" unless 0
    activation: str = "gelu"  # one of `ACTIVATIONS`; or "swiglu": silu of one half of twice as many times the other
    width: int | None = None  # of the output; None: that of the input

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the two layers."""
        kernel_init = find_scheme(self.init_scheme).kernel
        width = x.shape[-1] if self.width is None else self.width
        gated = self.activation == "swiglu"
        hidden = 2 * self.hidden if gated else self.hidden
        x = Dense(hidden, dtype=self.compute.jax_dtype, kernel_init=kernel_init, name="fc1")(x)
        if gated:
            gate, x = jnp.split(x, 2, axis=-1)
            x = jax.nn.silu(gate) * x
        else:
            x = ACTIVATIONS[self.activation](x)
        if self.dropout > 0.0:
            x = nn.Dropout(self.dropout, deterministic=False)(x)
        return Dense(width, dtype=self.compute.jax_dtype, kernel_init=kernel_init, name="fc2")(x)


class Block(nn.Module):
    """`x += gamma1 * Attention(norm(x)); x += gamma2 * MLP(norm(x))`, with drop path on both branches."""

    heads: int
    mlp_hidden: int
    qkv_bias: str = "all"
    layer_scale: float | None = None  # initial gamma; None: no layer scale
    stochastic: bool = False  # whether drop path is active
    collect: bool = False  # whether a scan over blocks keeps this one's output
    init_scheme: str = "xavier"
    compute: Compute = Compute()
    num_keys: int | None = None  # see `SelfAttention`
    activation: str = "gelu"  # see `MLP`
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        drop_rate: jax.Array,
        bias: jax.Array | None = None,
        valid: jax.Array | None = None,
        edit: AttentionEdit | None = None,
        layer: jax.Array | None = None,
        rotation: Rotation | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Maps `x [B, N, D]`; returns it to go on with, and again for a scan to collect if `collect` (else None)."""
        attention = SelfAttention(
            self.heads,
            self.qkv_bias,
            self.compute.attention_kernel,
            self.compute.jax_dtype,
            find_scheme(self.init_scheme).kernel,
            num_keys=self.num_keys,
            name="attention",
        )
        mlp = MLP(self.mlp_hidden, self.compute, self.init_scheme, activation=self.activation, name="mlp")
        x = split_over_batch(x)
        edit_logits = None if edit is None else functools.partial(self._edit_logits, edit, x, layer)
        normed = layer_norm(self.compute, "norm1", self.norm_epsilon)(x)
        branch = attention(normed, bias, valid, rotation, edit_logits=edit_logits)
        x = x + self._residual(branch, "gamma1", drop_rate)
        branch = mlp(layer_norm(self.compute, "norm2", self.norm_epsilon)(x))
        x = split_over_batch(x + self._residual(branch, "gamma2", drop_rate))
        if self.compute.materializes:
            x = materialize(x)
        return x, x if self.collect else None

    def _edit_logits(self, edit: AttentionEdit, x: jax.Array, layer: jax.Array, logits: jax.Array) -> jax.Array:
        logits, report = edit(logits, x, layer)
        if report is not None:
            self.sow("intermediates", "attention_report", report)
        return logits

    def _residual(self, branch: jax.Array, name: str, drop_rate: jax.Array) -> jax.Array:
        if self.layer_scale is not None:
            gamma = self.param(name, nn.initializers.constant(self.layer_scale), (branch.shape[-1],), jnp.float32)
            branch = branch * gamma.astype(branch.dtype)[None, None]
        if self.stochastic:
            branch = drop_path(branch, drop_rate, self.make_rng("drop_path"))
        return branch


class BlockStack(nn.Module):
    """`depth` blocks whose parameters are stacked on a leading layer axis, under `blocks`.

    The tree is the same whether depth is looped (unrolled by the compiler) or scanned, so either loads the other's
    checkpoints.
    """

    depth: int
    heads: int
    mlp_hidden: int
    qkv_bias: str = "all"
    layer_scale: float | None = None
    drop_path: float = 0.0  # of the last block; rates grow linearly
    init_scheme: str = "xavier"
    compute: Compute = Compute()
    first_drop_path: float = 0.0  # of the first block, where others come before this stack
    num_keys: int | None = None  # see `SelfAttention`
    activation: str = "gelu"  # see `MLP`
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array | None = None,
        valid: jax.Array | None = None,
        *,
        deterministic: bool = True,
        return_layers: bool = False,
        edit: AttentionEdit | None = None,
        rotation: Rotation | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Applies all blocks to `x [B, N, D]`; drop path needs the rng stream "drop_path" unless `deterministic`.

        `rotation` turns every block's queries and keys (rotary positions).

        With `edit` attention is always computed by "einsum", which has the logits.

        Returns:
          The last block's output, and every block's output `[depth, B, N, D]` if `return_layers` (else None).
        """
        in_axes = (0, nn.broadcast, nn.broadcast, nn.broadcast, 0, nn.broadcast)
        blocks = stack_blocks(Block, self.depth, self.compute, in_axes)(
            heads=self.heads,
            mlp_hidden=self.mlp_hidden,
            qkv_bias=self.qkv_bias,
            layer_scale=self.layer_scale,
            stochastic=self.drop_path > 0.0 and not deterministic,
            collect=return_layers,
            init_scheme=self.init_scheme,
            compute=self.compute,
            num_keys=self.num_keys,
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
            name="blocks",
        )
        rates = jnp.linspace(self.first_drop_path, self.drop_path, self.depth, dtype=jnp.float32)
        layers = None if edit is None else jnp.arange(self.depth, dtype=jnp.int32)
        return blocks(x.astype(self.compute.jax_dtype), rates, bias, valid, edit, layers, rotation)
