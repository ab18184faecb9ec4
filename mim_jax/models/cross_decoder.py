"""Decoders that reconstruct one view while they look at another by cross-attention (CroCo, SiamMAE, CropMAE)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.layers.attention import SelfAttention
from mim_jax.layers.block import MLP, layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.cross_attention import CrossAttention
from mim_jax.layers.initializers import find_scheme
from mim_jax.layers.materialize import materialize
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.position import PositionTable
from mim_jax.layers.rotary import Rotation, check_head_dim, grid_rotation
from mim_jax.layers.stack import stack_blocks
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models.vit import ViT, check_heads

# PyTorch initialises the projections of its MultiheadAttention as one matrix [3d, d].
_FUSED_XAVIER = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")


class CrossBlock(nn.Module):
    """What both kinds of blocks consist of; `norm_first` says in which order."""

    heads: int
    mlp_hidden: int
    norm_first: bool
    dropout: float = 0.0
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array,
        rotation: Rotation | None = None,
        memory_rotation: Rotation | None = None,
    ) -> tuple[jax.Array, None]:
        """Maps `x [B, Q, d]`, looking at `memory [B, K, d]`; the second result is what a scan collects."""
        kernel_init = find_scheme(self.init_scheme).kernel
        options = dict(implementation=self.compute.attention_kernel, dtype=self.compute.jax_dtype, dropout=self.dropout)
        attention = SelfAttention(self.heads, kernel_init=kernel_init, name="attention", **options)
        fused = not self.norm_first and self.init_scheme == "xavier"
        cross_attention = CrossAttention(
            self.heads,
            kernel_init=_FUSED_XAVIER if fused else kernel_init,
            out_init=kernel_init,
            name="cross_attention",
            **options,
        )
        mlp = MLP(self.mlp_hidden, self.compute, self.init_scheme, self.dropout, name="mlp")

        def norm(name: str) -> nn.LayerNorm:
            return layer_norm(self.compute, name)

        x = split_over_batch(x)
        if self.norm_first:
            x = x + attention(norm("norm_self")(x), rotation=rotation)
            memory = norm("norm_memory")(memory)
            x = x + cross_attention(norm("norm_cross")(x), memory, rotation=rotation, memory_rotation=memory_rotation)
            x = x + mlp(norm("norm_mlp")(x))
        else:
            turns = dict(rotation=rotation, memory_rotation=memory_rotation)
            x = norm("norm_cross")(x + self._drop(cross_attention(x, memory, **turns)))
            x = norm("norm_mlp")(x + self._drop(mlp(x)))
            x = norm("norm_self")(x + self._drop(attention(x, rotation=rotation)))
        x = split_over_batch(x)
        return (materialize(x) if self.compute.materializes else x), None

    def _drop(self, branch: jax.Array) -> jax.Array:
        return nn.Dropout(self.dropout, deterministic=False)(branch) if self.dropout > 0.0 else branch


class CrossBlockStack(nn.Module):
    """`depth` blocks whose parameters are stacked on a leading layer axis, under `blocks`, like `BlockStack`'s."""

    depth: int
    heads: int
    mlp_hidden: int
    norm_first: bool = True
    dropout: float = 0.0
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array, rotation: Rotation | None = None) -> jax.Array:
        """Applies all blocks to `x [B, Q, d]`; each looks at the same `memory [B, K, d]`."""
        blocks = stack_blocks(CrossBlock, self.depth, self.compute, (nn.broadcast,) * 3)(
            heads=self.heads,
            mlp_hidden=self.mlp_hidden,
            norm_first=self.norm_first,
            dropout=self.dropout,
            init_scheme=self.init_scheme,
            compute=self.compute,
            name="blocks",
        )
        return blocks(x, memory, rotation, rotation)[0]


class CrossDecoder(nn.Module):
    """Projects both views, fills in mask tokens, applies blocks that attend to the other view and predicts patches.

    With `norm_first` a block is pre-norm self-attention, cross-attention, MLP, and has a norm of its own for the other
    view (CroCo). Without it is post-norm, in the order cross-attention, MLP, self-attention (SiamMAE, CropMAE). The
    other view is the same for every block.
    """

    grid: tuple[int, int]
    output_dim: int
    width: int = 512
    depth: int = 8
    heads: int = 16
    mlp_hidden: int = 2048
    norm_first: bool = True
    dropout: float = 0.0  # of attention weights, inside the MLP, and of each branch where the block is post-norm
    class_token: bool = False
    position: str = "sincos"  # or "rope", in all attention
    memory_positions: bool = True  # whether sin-cos positions are added to the other view, too
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self, latent: jax.Array, reference: jax.Array, mask: TokenMask | None, *, deterministic: bool = True
    ) -> jax.Array:
        """Predicts all patches of the masked view.

        Args:
          latent: its encoded visible tokens `[B, (1 +) K, D]`.
          reference: the encoded tokens of the other view `[B, (1 +) N, D]`, none of them hidden.
          mask: which patches `latent` is of; None: of all in raster order.
          deterministic: no dropout; otherwise the rng stream "dropout" is needed where there is any.

        Returns:
          `[B, N, output_dim]` float32 in raster order.
        """
        scheme = find_scheme(self.init_scheme)
        dtype = self.compute.jax_dtype
        embed = nn.Dense(self.width, dtype=dtype, kernel_init=scheme.kernel, name="embed")
        mask_token = self.param("mask_token", scheme.token, (self.width,), jnp.float32)
        table, _ = PositionTable(self.grid, self.width, self.position, name="position")()
        prefix = int(self.class_token)
        x, memory = embed(latent), embed(reference)
        if mask is not None:
            x = jnp.concatenate([x[:, :prefix], mask.restore(x[:, prefix:], mask_token)], axis=1)
        if table is not None:
            table = jnp.pad(table, ((prefix, 0), (0, 0)))[None].astype(dtype)
            x = x + table
            memory = memory + table if self.memory_positions else memory
        rotation = None
        if self.position == "rope":
            rotation = grid_rotation(self.grid, self.width // self.heads, prefix=prefix)
        stack = CrossBlockStack(
            self.depth,
            self.heads,
            self.mlp_hidden,
            self.norm_first,
            0.0 if deterministic else self.dropout,
            self.init_scheme,
            self.compute,
            name="stack",
        )
        x = stack(x.astype(dtype), memory, rotation)
        x = layer_norm(self.compute, "norm")(x)
        x = nn.Dense(self.output_dim, dtype=dtype, kernel_init=scheme.kernel, name="prediction")(x[:, prefix:])
        return x.astype(jnp.float32)


def build(config: ConfigDict, encoder: ViT, *, mlp_hidden: int, dropout: float = 0.0, **kind: Any) -> CrossDecoder:
    """The decoder a run's `config.decoder` (`width`, `depth`, `heads`) asks for, on `encoder`'s patches.

    `kind` are `CrossDecoder`'s fields that make one method's decoder differ from another's. The decoder has rotary
    positions where the encoder has, and fixed sin-cos ones otherwise.

    Raises:
      ConfigError: impossible sizes.
    """
    decoder = config.decoder
    check_heads(decoder.width, decoder.heads, "decoder")
    if decoder.depth < 1:
        raise ConfigError(f"decoder.depth is {decoder.depth}; a decoder needs at least one block.")
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"decoder.dropout is {dropout}; it must lie in [0, 1).")
    position = "rope" if encoder.position == "rope" else "sincos"
    if position == "rope":
        check_head_dim(decoder.width, decoder.heads, "decoder")
    ph, pw = encoder.patch_size
    return CrossDecoder(
        grid=encoder.grid,
        output_dim=ph * pw * config.channels,
        width=decoder.width,
        depth=decoder.depth,
        heads=decoder.heads,
        mlp_hidden=mlp_hidden,
        dropout=dropout,
        class_token=encoder.class_token,
        position=position,
        init_scheme=encoder.init_scheme,
        compute=encoder.compute,
        **kind,
    )
