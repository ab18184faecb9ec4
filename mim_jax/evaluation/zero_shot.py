"""Segmentation by one prompted patch, and how well patch features tell objects apart, without any training.

The protocol of MMC (Wu et al. 2023, arXiv 2308.11448), as far as its abstract tells it: a map of cosine similarities to
the features of the prompted patch, cut at a threshold; and the overlap between the distributions of similarities within
an object and between objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.layers.unit import unit


def prompt_map(tokens: jax.Array, prompts: jax.Array) -> jax.Array:
    """Cosine similarities of all patches `tokens [B, N, D]` to the prompted ones, `prompts [B, P]`: `[B, P, N]`."""
    tokens = unit(tokens)
    prompted = jnp.take_along_axis(tokens, prompts[:, :, None], axis=1)
    return jnp.einsum("bpd,bnd->bpn", prompted, tokens, precision="highest")


def upsample(maps: jax.Array, grid: tuple[int, int], size: tuple[int, int]) -> jax.Array:
    """Maps over patches, `[..., rows * columns]`, bilinearly to pixels `[..., H, W]`."""
    maps = maps.reshape(*maps.shape[:-1], *grid)
    return jax.image.resize(maps, (*maps.shape[:-2], *size), "bilinear")


def threshold_iou(maps: jax.Array, objects: jax.Array, thresholds: Sequence[float]) -> jax.Array:
    """Intersection over union of `maps > threshold` with an object's mask, for each of T thresholds: `[..., T]`.

    Args:
      maps: similarities `[..., H, W]`.
      objects: bool `[..., H, W]`, of the same shape.
      thresholds: cosines.

    Returns:
      float32; 1 where both are empty.
    """
    above = maps[..., None] > jnp.asarray(thresholds, jnp.float32).reshape((1,) * maps.ndim + (-1,))
    inside = objects[..., None]
    intersection = (above & inside).sum(axis=(-3, -2), dtype=jnp.float32)
    union = (above | inside).sum(axis=(-3, -2), dtype=jnp.float32)
    return jnp.where(union > 0, intersection / jnp.maximum(union, 1.0), 1.0)


def same_object(objects: jax.Array) -> jax.Array:
    """Which pairs of patches belong to one object: bool `[B, N, N]`, each pair once and none with itself.

    `objects [B, N]` int32 numbers the object of each patch; negative: none.
    """
    return _pairs(objects) & (objects[:, :, None] == objects[:, None, :])


def different_objects(objects: jax.Array) -> jax.Array:
    """Which pairs of patches belong to different objects of an image; see `same_object`."""
    return _pairs(objects) & (objects[:, :, None] != objects[:, None, :])


class Similarities(NamedTuple):
    """The cosines of pairs of patches; sums of these are those of all pairs together."""

    histogram: jax.Array  # [bins] int32, counts over equal bins from -1 to 1
    total: jax.Array  # float32 [], the sum of the cosines


def pair_similarities(tokens: jax.Array, pairs: jax.Array, bins: int) -> Similarities:
    """The cosines of the `pairs [B, N, N]` (bool) of patches `tokens [B, N, D]`."""
    tokens = unit(tokens)
    cosines = jnp.einsum("bnd,bmd->bnm", tokens, tokens, precision="highest")
    index = jnp.clip(jnp.floor((cosines + 1.0) / 2.0 * bins), 0, bins - 1).astype(jnp.int32)
    histogram = jnp.zeros((bins,), jnp.int32).at[index.reshape(-1)].add(pairs.reshape(-1).astype(jnp.int32))
    return Similarities(histogram, jnp.where(pairs, cosines, 0.0).sum())


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """The area under the smaller of two histograms `[bins]`, each normalised to area 1: 1 if alike, 0 if disjoint.

    Raises:
      ValueError: a histogram is empty.
    """
    first, second = (np.asarray(histogram, np.float64) for histogram in (first, second))
    if min(first.sum(), second.sum()) <= 0.0:
        raise ValueError("A histogram without counts has no shape to compare.")
    return float(np.minimum(first / first.sum(), second / second.sum()).sum())


def _pairs(objects: jax.Array) -> jax.Array:
    """Pairs of patches that both belong to an object, each once."""
    count = objects.shape[1]
    known = objects >= 0
    return known[:, :, None] & known[:, None, :] & jnp.triu(jnp.ones((1, count, count), bool), k=1)
