"""DMT-JEPA's head, which gathers a patch's most similar neighbours, and refines contexts (Mo and Yun 2024)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.layers.block import MLP, layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.cross_attention import CrossAttention
from mim_jax.layers.initializers import find_scheme
from mim_jax.layers.materialize import materialize
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.stack import stack_blocks
from mim_jax.models.vit import ViT

_CHOICES = {
    "query_image": ("own", "official"),
    "context_attn": ("cross-attn", "self-attn"),
    "target_attn": ("cross-attn", "self-attn"),
}


class NeighborhoodBlock(nn.Module):
    """A pre-norm block in one of two modes, with the same parameters in both.

    Given neighbours, the one token of a patch attends to itself and to them. Otherwise the mean of a context's tokens
    attends to itself and to all of them, and what it finds is added to every token.
    """

    heads: int
    mlp_hidden: int
    context_attn: str = "cross-attn"
    init_scheme: str = "normal"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, neighbors: jax.Array | None) -> tuple[jax.Array, None]:
        """Maps `x [M, 1, D]` with `neighbors [M, k, D]`, or contexts `x [B, K, D]`; the second result is a scan's."""
        attention = CrossAttention(
            self.heads,
            implementation=self.compute.attention_kernel,
            dtype=self.compute.jax_dtype,
            kernel_init=find_scheme(self.init_scheme).kernel,
            name="attention",
        )
        mlp = MLP(self.mlp_hidden, self.compute, self.init_scheme, name="mlp")
        norm1, norm2 = (layer_norm(self.compute, name) for name in ("norm1", "norm2"))
        x = split_over_batch(x)
        if neighbors is not None:
            tokens, num_queries = jnp.concatenate([x, neighbors], axis=1), 1
        elif self.context_attn == "cross-attn":
            mean = x.astype(jnp.float32).mean(axis=1, keepdims=True).astype(x.dtype)
            tokens, num_queries = jnp.concatenate([mean, x], axis=1), 1
        else:
            tokens, num_queries = x, x.shape[1]
        tokens = norm1(tokens)
        x = x + attention(tokens[:, :num_queries], tokens)
        x = split_over_batch(x + mlp(norm2(x)))
        return materialize(x) if self.compute.materializes else x, None


class NeighborhoodBlockStack(nn.Module):
    """`depth` blocks whose parameters are stacked on a leading layer axis, under `blocks`, like `BlockStack`'s."""

    depth: int
    heads: int
    mlp_hidden: int
    context_attn: str = "cross-attn"
    init_scheme: str = "normal"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, neighbors: jax.Array | None) -> jax.Array:
        """Applies all blocks to `x`; each is given the same neighbours, if any."""
        blocks = stack_blocks(NeighborhoodBlock, self.depth, self.compute, (nn.broadcast,))(
            self.heads, self.mlp_hidden, self.context_attn, self.init_scheme, self.compute, name="blocks"
        )
        dtype = self.compute.jax_dtype
        return blocks(x.astype(dtype), None if neighbors is None else neighbors.astype(dtype))[0]


class NeighborhoodHead(nn.Module):
    """Blocks and a final norm, which its EMA copy applies to targets and itself to contexts.

    For each target all of its `1 + k` tokens are projected to keys and values, and one of them goes through the rest.
    """

    depth: int
    heads: int
    mlp_ratio: float = 4.0
    context_attn: str = "cross-attn"  # "self-attn": the tokens of a context attend to one another, without a mean
    init_scheme: str = "normal"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, neighbors: jax.Array | None = None) -> jax.Array:
        """Aggregates of neighbours, or refined contexts.

        Args:
          x: the token of every patch that is aggregated for, `[M, 1, D]`; without neighbours contexts `[B, K, D]`.
          neighbors: `[M, k, D]`. All blocks are given the same.

        Returns:
          The shape of `x`, float32.
        """
        hidden = int(x.shape[-1] * self.mlp_ratio)
        stack = NeighborhoodBlockStack(
            self.depth, self.heads, hidden, self.context_attn, self.init_scheme, self.compute, name="stack"
        )
        return layer_norm(self.compute, "norm")(stack(x, neighbors)).astype(jnp.float32)


def default_config() -> ConfigDict:
    """The `head` section of the official configurations."""
    return ConfigDict(
        dict(
            depth=2,
            heads=optional(int),  # None: as many as the encoder has
            mlp_ratio=4.0,
            window=3,  # side of the square of patches among which a patch's neighbours are
            neighbors=4,  # how many of them are aggregated: those most similar to the patch
            # Whose mean token asks a patch's neighbours: that of its "own" image. "official": the images in turn, patch
            # by patch, which in the official code is a slip by which targets tell of other images of a device's batch.
            query_image="own",
            context_attn="cross-attn",  # "self-attn": the context's tokens attend to one another, without a mean
            # "self-attn" computes a row for every neighbour and keeps the first, which is what "cross-attn" computes.
            target_attn="cross-attn",
        )
    )


def build(config: ConfigDict, encoder: ViT) -> NeighborhoodHead:
    """The head a run's `config.head` asks for, as wide as `encoder`.

    Raises:
      ConfigError: an unknown choice or impossible sizes.
    """
    head = config.head
    heads = encoder.heads if head.heads is None else head.heads
    for key, choices in _CHOICES.items():
        if head[key] not in choices:
            raise ConfigError(f"head.{key} is {head[key]!r}; choose {' or '.join(map(repr, choices))}.")
    if heads < 1 or encoder.width % heads:
        raise ConfigError(f"model.width {encoder.width} is not divisible by head.heads {heads}; change one of the two.")
    if head.depth < 1:
        raise ConfigError(f"head.depth is {head.depth}; a head needs at least one block.")
    if not 1 <= head.neighbors < head.window**2:
        raise ConfigError(
            f"head.neighbors is {head.neighbors}; a window of {head.window} (head.window) has {head.window**2 - 1}."
        )
    return NeighborhoodHead(
        depth=head.depth,
        heads=heads,
        mlp_ratio=head.mlp_ratio,
        context_attn=head.context_attn,
        init_scheme=encoder.init_scheme,
        compute=encoder.compute,
    )
