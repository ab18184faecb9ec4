"""I-JEPA's predictor: a narrow transformer from context tokens to the latents of one target block (section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.fields import optional
from mim_jax.layers.block import BlockStack, layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.initializers import find_scheme
from mim_jax.layers.position import PositionTable
from mim_jax.models.vit import ViT, check_heads


class LatentPredictor(nn.Module):
    """Predicts the latents at given positions; each target block is predicted by itself."""

    grid: tuple[int, int]
    output_dim: int
    width: int = 384
    depth: int = 6
    heads: int = 12
    mlp_ratio: float = 4.0
    position: str = "sincos"
    init_scheme: str = "normal"
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self, context: jax.Array, context_ids: Sequence[jax.Array], target_ids: Sequence[jax.Array]
    ) -> jax.Array:
        """Predicts every target block from every context.

        Args:
          context: encoded context tokens `[E*B, Kc, D]`, the E context masks stacked on the batch axis.
          context_ids: E arrays `[B, Kc]` of patch indices.
          target_ids: T arrays `[B, Kp]` of patch indices.

        Returns:
          `[T, E, B, Kp, output_dim]` float32.
        """
        scheme = find_scheme(self.init_scheme)
        dtype = self.compute.jax_dtype
        table, _ = PositionTable(self.grid, self.width, self.position, name="position")()
        mask_token = self.param("mask_token", scheme.token, (self.width,), jnp.float32)
        batch = context_ids[0].shape[0]
        sets = (len(target_ids), len(context_ids), batch)

        x = nn.Dense(self.width, dtype=dtype, kernel_init=scheme.kernel, name="embed")(context)
        x = x + table[jnp.concatenate(context_ids)].astype(dtype)
        x = x.reshape(1, *sets[1:], *x.shape[1:])
        queries = (mask_token[None, None, None] + table[jnp.stack(target_ids)]).astype(dtype)[:, None]
        num_queries = queries.shape[-2]
        x = jnp.concatenate([jnp.broadcast_to(tokens, (*sets, *tokens.shape[3:])) for tokens in (x, queries)], axis=3)
        # All sets of one image stay together, so that a batch split over devices stays where it is.
        x = jnp.moveaxis(x, 2, 0).reshape(-1, *x.shape[3:])
        x, _ = BlockStack(
            self.depth,
            self.heads,
            int(self.width * self.mlp_ratio),
            init_scheme=self.init_scheme,
            compute=self.compute,
            name="stack",
        )(x)
        x = layer_norm(self.compute, "norm")(x[:, -num_queries:])
        x = nn.Dense(self.output_dim, dtype=dtype, kernel_init=scheme.kernel, name="projection")(x)
        return jnp.moveaxis(x.astype(jnp.float32).reshape(batch, *sets[:2], num_queries, -1), 0, 2)


def default_config() -> ConfigDict:
    """The `predictor` section for ViT-B; `heads=None` takes the encoder's number, as the official code does."""
    return ConfigDict(dict(width=384, depth=6, heads=optional(int), mlp_ratio=4.0))


def build(config: ConfigDict, encoder: ViT) -> LatentPredictor:
    """The predictor a run's `config.predictor` asks for, on `encoder`'s grid."""
    predictor = config.predictor
    heads = encoder.heads if predictor.heads is None else predictor.heads
    check_heads(predictor.width, heads, "predictor")
    return LatentPredictor(
        grid=encoder.grid,
        output_dim=encoder.width,
        width=predictor.width,
        depth=predictor.depth,
        heads=heads,
        mlp_ratio=predictor.mlp_ratio,
        init_scheme=encoder.init_scheme,
        compute=encoder.compute,
    )
