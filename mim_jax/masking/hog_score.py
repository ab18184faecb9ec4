"""How rich in detail each patch is, for drawing patches by it (Wang et al. 2025, SelectiveMAE, section 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.layers.patches import patchify

SCORES = ("uniform", "hog")

_CELLS_AND_BINS = 4 * 9  # entries of a patch's descriptor per channel


def patch_scores(images: jax.Array, patch_size: tuple[int, int], score: str) -> jax.Array:
    """Log-probabilities, up to a constant, of drawing each patch of `images [B, H, W, C]`: `[B, N]` float32.

    "uniform" is what the official code computes. It takes histograms of oriented gradients, standardises each patch's
    and then averages that patch's entries, which gives 0 whatever the image is.

    "hog" is a guess at what was meant, the same average of the descriptors BEFORE they are normalised and standardised:
    the gradient magnitude under a Gaussian window of the patch's size, a mean over channels, cells and bins (over which
    a sum needs no histogram).
    """
    ph, pw = patch_size
    batch, height, width, _ = images.shape
    if score == "uniform":
        return jnp.zeros((batch, (height // ph) * (width // pw)), jnp.float32)
    energy = patchify(gradient_magnitude(images.astype(jnp.float32)), patch_size)
    energy = energy.reshape(batch, -1, ph * pw, images.shape[-1]).mean(axis=-1)
    window = jnp.asarray(gaussian_window(patch_size)).reshape(1, 1, -1)
    return (energy * window).sum(axis=-1) / _CELLS_AND_BINS


def gradient_magnitude(images: jax.Array) -> jax.Array:
    """Length of the Sobel gradient at every pixel and channel of `images [B, H, W, C]`; borders are mirrored."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")

    def smooth(x: jax.Array, axis: int) -> jax.Array:
        first, middle, last = _neighbours(x, axis)
        return first + 2.0 * middle + last

    def slope(x: jax.Array, axis: int) -> jax.Array:
        first, _, last = _neighbours(x, axis)
        return first - last

    return jnp.sqrt(jnp.square(slope(smooth(padded, 1), 2)) + jnp.square(slope(smooth(padded, 2), 1)))


def _neighbours(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    length = x.shape[axis] - 2
    return tuple(jax.lax.slice_in_dim(x, start, start + length, axis=axis) for start in range(3))


def gaussian_window(size: tuple[int, int]) -> np.ndarray:
    """A Gaussian over a patch, its standard deviation half the patch's side and its sum 1, `size` float32."""
    sides = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 2)) ** 2) for n in size]
    window = sides[0][:, None] * sides[1][None, :]
    return (window / window.sum()).astype(np.float32)
