"""Degradations that hide detail without a mask, whose inverses are the classical restoration tasks.

Super-resolution, deblurring and denoising as Xie et al. 2023 (MFM, section 3.3) pre-train on them. Each draws what is
random about it for a batch (an array that may be given by hand instead) and applies it to pixels in [0, 1].
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.errors import ConfigError
from mim_jax.layers.resize import resize_images


@dataclasses.dataclass(frozen=True)
class Downsampling:
    """Bicubic to a `factor` smaller and back, as PyTorch's `interpolate` does it: no antialiasing. Draws nothing."""

    image_size: tuple[int, int]
    factor: int = 8

    def __post_init__(self):
        if self.factor < 2 or any(size % self.factor for size in self.image_size):
            raise ConfigError(
                f"super_resolution.factor is {self.factor}; it must be at least 2 and divide image_size "
                f"{self.image_size[0]}x{self.image_size[1]}."
            )

    def draw(self, rng: jax.Array, batch: int) -> None:
        """Nothing is random."""
        del rng, batch

    def __call__(self, pixels: jax.Array, drawn: None = None) -> jax.Array:
        """`pixels [B, H, W, C]`, cut to [0, 1] after each of the two resizes."""
        del drawn
        small = tuple(size // self.factor for size in self.image_size)
        for size in (small, self.image_size):
            pixels = jnp.clip(resize_images(pixels, size), 0.0, 1.0)
        return pixels


@dataclasses.dataclass(frozen=True)
class GaussianBlur:
    """An isotropic Gaussian of standard deviation `sigma` pixels in a window of random size.

    What is drawn is `[B, K]` float32, K the largest size: the taps of a one-dimensional kernel, zero outside its
    window. A two-dimensional isotropic kernel `[B, K, K]` of the official code has the taps `kernel.sum(axis=1)`.
    """

    image_size: tuple[int, int]
    sigma: float = 5.0
    sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)

    def __post_init__(self):
        if self.sigma <= 0.0:
            raise ConfigError(f"deblur.sigma is {self.sigma}; it must be positive.")
        limit = 2 * min(self.image_size) - 1  # borders are reflected at most once
        if not self.sizes or any(size < 3 or size % 2 == 0 or size > limit for size in self.sizes):
            raise ConfigError(
                f"deblur.kernel_sizes is {self.sizes}; give odd sizes from 3 to {limit} (less than twice image_size)."
            )

    @property
    def taps(self) -> np.ndarray:
        """The kernels of all sizes, `[len(sizes), K]` float32, each of sum 1."""
        offset = np.arange(max(self.sizes)) - max(self.sizes) // 2
        inside = np.abs(offset)[None] <= np.asarray(self.sizes)[:, None] // 2
        kernels = np.where(inside, np.exp(-0.5 * offset**2 / self.sigma**2)[None], 0.0)
        return (kernels / kernels.sum(axis=1, keepdims=True)).astype(np.float32)

    def draw(self, rng: jax.Array, batch: int) -> jax.Array:
        """One of the sizes for each image."""
        return jnp.asarray(self.taps)[jax.random.randint(rng, (batch,), 0, len(self.sizes))]

    def __call__(self, pixels: jax.Array, taps: jax.Array) -> jax.Array:
        """`pixels [B, H, W, C]` blurred along columns, then rows; borders are mirrored (OpenCV's reflect-101).

        Isotropic two-dimensional kernels `[B, K, K]` may be given in place of the taps.
        """
        if taps.ndim == 3:  # two-dimensional kernels
            taps = taps.sum(axis=1)
        count = taps.shape[1]
        for axis in (1, 2):
            length = pixels.shape[axis]
            margins = [(0, 0)] * 4
            margins[axis] = (count // 2, count // 2)
            padded = jnp.pad(pixels, margins, mode="reflect")
            shifted = (jax.lax.slice_in_dim(padded, k, k + length, axis=axis) for k in range(count))
            pixels = sum(taps[:, k, None, None, None] * part for k, part in enumerate(shifted))
        return pixels


@dataclasses.dataclass(frozen=True)
class GaussianNoise:
    """Additive colour noise of standard deviation `sigma / 255`; nothing is cut off.

    What is drawn is the noise itself, `[B, H, W, C]` float32 in units of pixels in [0, 1].
    """

    shape: tuple[int, int, int]
    sigma: float = 75.0

    def __post_init__(self):
        if self.sigma <= 0.0:
            raise ConfigError(f"denoise.sigma is {self.sigma}; it must be positive.")

    def draw(self, rng: jax.Array, batch: int) -> jax.Array:
        """Independent noise for every pixel and channel."""
        return self.sigma / 255.0 * jax.random.normal(rng, (batch, *self.shape), jnp.float32)

    def __call__(self, pixels: jax.Array, noise: jax.Array) -> jax.Array:
        """`pixels + noise`."""
        return pixels + noise
