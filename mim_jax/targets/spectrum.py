"""The Fourier spectrum as target: MFM's frequency loss with the options of the focal frequency loss.

Xie et al. 2023 (arXiv 2206.07706, section 3.2), after Jiang et al. 2021 (arXiv 2012.12821).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mim_jax.errors import ConfigError
from mim_jax.layers.placement import apply_to_own_rows

EPSILON = 1e-12  # inside the square root, whose gradient would be infinite where spectra agree


@dataclasses.dataclass(frozen=True)
class FrequencyLoss:
    """Mean distance of two images' spectra, `|F(prediction) - F(target)|^gamma` at every frequency and channel.

    F is orthonormal, so that `gamma=2` over all frequencies is the mean squared error of the pixels (Parseval).
    """

    gamma: float = 1.0
    focal_alpha: float | None = None  # weights each frequency by its distance to this power; None: all alike
    focal_log: bool = False  # takes the logarithm of 1 + these weights
    focal_over_batch: bool = False  # divides them by the batch's largest, not each image's and channel's own
    tiles: int = 1  # transforms tiles x tiles parts of an image by themselves
    average_batch: bool = False  # compares spectra averaged over the batch

    def __post_init__(self):
        if self.gamma <= 0.0:
            raise ConfigError(f"spectrum.gamma is {self.gamma}; it must be positive.")
        if self.tiles < 1:
            raise ConfigError(f"spectrum.tiles is {self.tiles}; it must be at least 1.")

    @property
    def can_select(self) -> bool:
        """Whether single frequencies of single images can be compared."""
        return self.tiles == 1 and not self.average_batch

    def __call__(self, prediction: jax.Array, target: jax.Array, compared: jax.Array | None = None) -> jax.Array:
        """The float32 scalar loss.

        Args:
          prediction: `[B, H, W, C]`.
          target: `[B, H, W, C]`, in the same units.
          compared: `[B, H, W]` bool over the centred spectrum; the mean is taken over these frequencies of the whole
            batch at once (so images that lost more count more). None: over all. Needs `can_select`.
        """
        # The transform is linear: that of the difference is the difference of the two.
        spectrum = self._transform(prediction.astype(jnp.float32) - target.astype(jnp.float32))
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)  # [B, tiles^2, h, w, C]
        distance = jnp.sqrt(power + EPSILON)
        if self.gamma != 1.0:
            distance = jnp.power(distance, self.gamma)
        if self.focal_alpha is not None:
            distance = distance * jax.lax.stop_gradient(self._focal_weights(power))
        if compared is None:
            return distance.mean()
        weight = jnp.fft.ifftshift(compared, axes=(1, 2)).astype(jnp.float32)[:, None, :, :, None]
        return (distance * weight).sum() / (weight.sum() * distance.shape[-1])

    def _transform(self, images: jax.Array) -> jax.Array:
        batch, height, width, channels = images.shape
        h, w = height // self.tiles, width // self.tiles
        tiled = images.reshape(batch, self.tiles, h, self.tiles, w, channels).transpose(0, 1, 3, 2, 4, 5)
        tiled = tiled.reshape(batch, self.tiles**2, h, w, channels)
        spectrum = apply_to_own_rows(lambda x: jnp.fft.fft2(x, axes=(2, 3), norm="ortho"), tiled)
        return spectrum.mean(axis=0, keepdims=True) if self.average_batch else spectrum

    def _focal_weights(self, power: jax.Array) -> jax.Array:
        weights = jnp.power(jnp.sqrt(power), self.focal_alpha)
        if self.focal_log:
            weights = jnp.log1p(weights)
        largest = weights.max() if self.focal_over_batch else weights.max(axis=(2, 3), keepdims=True)
        # 0 where an image is predicted perfectly, as the official code replaces its 0 / 0.
        return jnp.where(largest > 0.0, weights / jnp.where(largest > 0.0, largest, 1.0), 0.0)
