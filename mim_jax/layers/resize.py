"""Bicubic resizing as PyTorch does it, by one small matrix per axis (`jax.image.resize` has another kernel)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def resize_images(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """`[B, H, W, C]` to `[B, *size, C]`, bicubic without antialiasing; float32 products of full precision."""
    if images.shape[1:3] == tuple(size):
        return images
    rows, columns = (
        jnp.asarray(bicubic_matrix(*pair), jnp.float32) for pair in zip(images.shape[1:3], size, strict=True)
    )
    return jnp.einsum("ai,bj,nijc->nabc", rows, columns, images, precision="highest")


def _cubic_weights(distance: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def bicubic_matrix(source: int, target: int, offset: float = 0.0, antialias: bool = False) -> np.ndarray:
    """`[target, source]` float64: resizes one axis as PyTorch's bicubic `interpolate` does (`align_corners=False`).

    Without `antialias` the kernel has a = -0.75 and borders are clamped. With it a = -0.5, widened by the factor by
    which the axis shrinks, and what lies outside is left out. `offset` is added to the target size in the scale alone,
    as DINO does it to be safe from rounding.
    """
    ratio = source / (target + offset)
    centre = (np.arange(target) + 0.5) * ratio - 0.5
    width = max(ratio, 1.0) if antialias else 1.0
    reach = int(np.ceil(2 * width))
    first = np.floor(centre).astype(int) - reach + 1
    matrix = np.zeros((target, source))
    for tap in range(2 * reach):
        index = first + tap
        weights = _cubic_weights((centre - index) / width, -0.5 if antialias else -0.75)
        if antialias:
            weights = np.where((index >= 0) & (index < source), weights, 0.0)
        np.add.at(matrix, (np.arange(target), np.clip(index, 0, source - 1)), weights)
    return matrix / matrix.sum(axis=1, keepdims=True) if antialias else matrix
