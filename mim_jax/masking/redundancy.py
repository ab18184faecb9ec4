"""Masks that drop the tokens most like the others, more of them the deeper (Shi et al. 2024, Hybrid Distillation)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mim_jax.masking.token_mask import TokenMask, take_tokens


def redundancy(tokens: jax.Array) -> jax.Array:
    """How much each of `tokens [B, K, D]` resembles all of them: the mean of its cosines, `[B, K]` float32."""
    tokens = tokens.astype(jnp.float32)
    lengths = jnp.sqrt(jnp.maximum(jnp.square(tokens).sum(axis=-1, keepdims=True), 1e-24))
    directions = tokens / lengths
    # The mean of the products with all directions is the product with their mean.
    return jnp.einsum("bkd,bd->bk", directions, directions.mean(axis=1), precision="highest")


def drop_redundant(tokens: jax.Array, alive: TokenMask, num_keep: int) -> TokenMask:
    """Of the tokens that are `alive`, keeps the `num_keep` least redundant ones.

    Args:
      tokens: `[B, K, D]`, features of the alive tokens in the order of `alive.ids_keep`.
      alive: a mask over all N tokens that leaves K.
      num_keep: how many remain, at most K.

    Returns:
      A mask over all N tokens whose visible ones, in raster order, are among those of `alive`; of equally redundant
      tokens the one of lower rank in `alive.ids_keep` stays.
    """
    kept = jnp.argsort(redundancy(tokens), axis=1, stable=True)[:, :num_keep]
    ids = jnp.take_along_axis(alive.ids_keep, kept, axis=1)
    visible = (ids[:, :, None] == jnp.arange(alive.mask.shape[1], dtype=ids.dtype)[None, None]).any(axis=1)
    return TokenMask.from_bool(~visible, num_keep)


def all_alive(batch: int, num_tokens: int) -> TokenMask:
    """The mask that hides nothing."""
    return TokenMask.from_bool(jnp.zeros((batch, num_tokens), bool), num_tokens)


def places_within(ids: jax.Array, earlier: jax.Array) -> jax.Array:
    """Where each of the tokens `ids [B, K]` stands in `earlier [B, M]`, which holds it once: `[B, K]` int32."""
    return jnp.argmax(ids[:, :, None] == earlier[:, None, :], axis=2).astype(jnp.int32)


def take_alive(tokens: jax.Array, alive: TokenMask | None, prefix: int) -> jax.Array:
    """Of `tokens [B, prefix + N, D]` the first `prefix` and those that are alive; all without a mask."""
    if alive is None:
        return tokens
    return jnp.concatenate([tokens[:, :prefix], take_tokens(tokens[:, prefix:], alive.ids_keep)], axis=1)
