"""A ViT whose sequence grows shorter on the way: its blocks run in segments, with tokens dropped in between.

The parameters are those of the plain ViT, in slices of its stacked blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mim_jax.layers.block import drop_path_rngs
from mim_jax.masking.redundancy import places_within
from mim_jax.masking.token_mask import TokenMask, take_tokens
from mim_jax.models.vit import ViT


class ProgressiveFeatures(NamedTuple):
    """What an encoder says of images of which it drops patches on the way."""

    tokens: jax.Array  # after the final norm, `[B, (1 +) K, D]`, of the patches alive at the end
    inputs: dict[int, jax.Array]  # of the blocks that were asked for, by their number, each `[B, (1 +) K, D]`


def encode_progressively(
    encoder: ViT,
    params: Any,
    images: jax.Array,
    *,
    alive: Mapping[int, TokenMask] | None = None,
    inputs: Collection[int] = (),
    until: int | None = None,
    rng: jax.Array | None = None,
) -> ProgressiveFeatures:
    """Encodes `images [B, H, W, C]`; no drop path without `rng`.

    Args:
      encoder: with absolute positions, which tokens take along.
      params: the encoder's.
      images: normalised pixels.
      alive: the patches that are left from a block on, by its number; each mask's are among those of the one before.
        They stand in the order of its `ids_keep`. The class token is never dropped.
      inputs: blocks, by their numbers, of which the input is wanted (what is dropped there is not in it).
      until: how many blocks are run; None: all.
      rng: for drop path.
    """
    alive, until = alive or {}, encoder.depth if until is None else until
    prefix = int(encoder.class_token) + encoder.num_registers
    bounds = sorted({0, until, *(n for n in (*alive, *inputs) if n < until)})

    def run(x: jax.Array) -> tuple[jax.Array, dict[int, jax.Array]]:
        found, ids = {}, None
        for start, end in itertools.pairwise([*bounds, until]):
            if start in alive:
                wanted = alive[start].ids_keep
                x = _keep(x, wanted if ids is None else places_within(wanted, ids), prefix)
                ids = wanted
            if start in inputs:
                found[start] = x
            if end > start:
                x = _segment(encoder, params["stack"]["blocks"], start, end, x, rng)
        return x, found

    tokens, found = encoder.apply({"params": params}, images, return_layers=True, blocks=run)
    return ProgressiveFeatures(tokens, found)


def _keep(x: jax.Array, places: jax.Array, prefix: int) -> jax.Array:
    return jnp.concatenate([x[:, :prefix], take_tokens(x[:, prefix:], places)], axis=1)


def _segment(encoder: ViT, blocks: Any, start: int, end: int, x: jax.Array, rng: jax.Array | None) -> jax.Array:
    """The blocks from `start` up to `end`, with the drop-path rates they have in the whole stack."""
    per_block = encoder.drop_path / max(encoder.depth - 1, 1)
    stack = encoder.block_stack(
        depth=end - start, first_drop_path=start * per_block, drop_path=(end - 1) * per_block, parent=None
    )
    sliced = jax.tree.map(lambda leaf: leaf[start:end], blocks)
    rngs = drop_path_rngs(None if rng is None else jax.random.fold_in(rng, start))
    return stack.apply({"params": {"blocks": sliced}}, x, **rngs)[0]
