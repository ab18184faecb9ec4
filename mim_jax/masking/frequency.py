"""Masks over the Fourier spectrum of an image: low-pass and high-pass filters (Xie et al. 2023, MFM, section 3.1)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.errors import ConfigError
from mim_jax.layers.placement import apply_to_own_rows

SPATIAL = (1, 2)  # the axes of images [B, H, W, C] that are transformed


def low_pass(image_size: tuple[int, int], radius: float, outer_radius: float | None = None) -> np.ndarray:
    """`[H, W]` bool over the centred spectrum (DC at `(H // 2, W // 2)`): true at distances below `radius`.

    With `outer_radius` also true from that distance on, which makes it a band-stop filter.
    """
    rows, columns = (np.arange(size) - size // 2 for size in image_size)
    distance = rows[:, None] ** 2 + columns[None, :] ** 2
    kept = distance < radius**2
    return kept if outer_radius is None else kept | (distance >= outer_radius**2)


@dataclasses.dataclass(frozen=True)
class FrequencyFilter:
    """Leaves each image either its low or its high frequencies, the same ones in all channels.

    What is drawn is `[B, H, W]` bool over the centred spectrum, true where a frequency stays: the official mask, which
    may be given instead (bool, or 0 and 1).
    """

    image_size: tuple[int, int]
    radius: float = 16.0
    outer_radius: float | None = None
    low_pass_probability: float = 0.5

    def __post_init__(self):
        if not 0.0 <= self.low_pass_probability <= 1.0:
            raise ConfigError(
                f"frequency.low_pass_probability is {self.low_pass_probability}; it must lie between 0 and 1."
            )
        kept = low_pass(self.image_size, self.radius, self.outer_radius)
        if kept.all() or not kept.any():
            raise ConfigError(
                f"frequency.radius {self.radius} keeps {kept.sum()} of {kept.size} frequencies; choose one that keeps "
                f"some and removes some at image_size {self.image_size[0]}x{self.image_size[1]}, such as "
                f"{min(self.image_size) / 14:.3g}."
            )

    def draw(self, rng: jax.Array, batch: int) -> jax.Array:
        """Low-pass with `low_pass_probability`, else its complement, for each image by itself."""
        kept = jnp.asarray(low_pass(self.image_size, self.radius, self.outer_radius))[None]
        is_low = jax.random.bernoulli(rng, self.low_pass_probability, (batch, 1, 1))
        return jnp.where(is_low, kept, ~kept)

    def __call__(self, pixels: jax.Array, kept: jax.Array) -> jax.Array:
        """`pixels [B, H, W, C]` in [0, 1] with only the `kept` frequencies, cut back to [0, 1].

        A high-pass image has lost its mean, and then half of its values to the cut: so the official code does it.
        """
        return jnp.clip(keep_frequencies(pixels, kept), 0.0, 1.0)

    def removed(self, kept: jax.Array) -> jax.Array:
        """The frequencies an image has lost, `[B, H, W]` bool."""
        return ~kept.astype(bool)


def keep_frequencies(images: jax.Array, kept: jax.Array) -> jax.Array:
    """The part of `images [B, H, W, C]` at the frequencies `kept [B, H, W]` (centred), float32."""

    def transform(images: jax.Array, kept: jax.Array) -> jax.Array:
        spectrum = jnp.fft.fft2(images, axes=SPATIAL)
        spectrum = jnp.where(kept[..., None], spectrum, jnp.zeros((), spectrum.dtype))
        return jnp.fft.ifft2(spectrum, axes=SPATIAL).real

    kept = jnp.fft.ifftshift(kept.astype(bool), axes=SPATIAL)
    return apply_to_own_rows(transform, images.astype(jnp.float32), kept)
