"""Pixel targets: patches, optionally normalised each by its own statistics."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mim_jax.layers.patches import patchify, unpatchify

EPSILON = 1e-6


def pixel_target(images: jax.Array, patch_size: tuple[int, int], norm_pix: bool) -> jax.Array:
    """Patches of `images [B, H, W, C]` as targets `[B, N, p*p*C]` float32.

    With `norm_pix` each patch is normalised by the mean and UNBIASED variance over all its values, with 1e-6 inside the
    square root (He et al. 2022, section 3, "Reconstruction target", as their code computes it).
    """
    target = patchify(images.astype(jnp.float32), patch_size)
    if not norm_pix:
        return target
    mean, deviation = patch_statistics(target)
    return (target - mean) / deviation


def raw_pixels(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """The 8-bit pixels, 0 to 255 as float32, that `images [B, H, W, C]` were normalised from.

    `mean` and `std` are those of the pipeline, per channel, of values in [0, 1] (`mim_jax.normalization`).
    Rounding takes away what normalising and coming back did to the last digits, so that equal pixels are equal again.
    """
    scale, offset = (255.0 * jnp.asarray(values, jnp.float32)[None, None, None] for values in (std, mean))
    return jnp.round(images.astype(jnp.float32) * scale + offset)


def patch_statistics(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and `sqrt(unbiased variance + 1e-6)` of each patch of `[B, N, p*p*C]`: two arrays `[B, N, 1]`."""
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + EPSILON)


def masked_mean(per_token: jax.Array, hidden: jax.Array, epsilon: float = 0.0) -> jax.Array:
    """Mean of `per_token [B, N]` over the tokens where `hidden [B, N]` is true, over the whole batch.

    `epsilon` is added to their number: with one, the mean over no token is 0.
    """
    weight = hidden.astype(jnp.float32)
    return (per_token * weight).sum() / (weight.sum() + epsilon)


def masked_pictures(
    images: jax.Array, prediction: jax.Array, hidden: jax.Array, patch_size: tuple[int, int]
) -> dict[str, jax.Array]:
    """What `Objective.reconstruct` returns for a method that predicts pixels.

    Args:
      images: `[B, H, W, C]`.
      prediction: `[B, N, p*p*C]` in the units of the images.
      hidden: `[B, N]` bool.
      patch_size: `(height, width)` of a patch.

    Returns:
      `original`; `masked`, zero where hidden; `reconstruction`, the prediction where hidden and the image elsewhere.
    """
    images = images.astype(jnp.float32)
    patches, hidden = patchify(images, patch_size), hidden[:, :, None]
    grid = (images.shape[1] // patch_size[0], images.shape[2] // patch_size[1])
    return {
        "original": images,
        "masked": unpatchify(jnp.where(hidden, jnp.zeros((), jnp.float32), patches), patch_size, grid),
        "reconstruction": unpatchify(jnp.where(hidden, prediction, patches), patch_size, grid),
    }
