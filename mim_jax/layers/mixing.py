"""Mixup and CutMix: a batch mixed with itself in reverse order, as timm does for fine-tuning.

One draw serves the whole batch. Shapes are static and a box is a comparison of coordinates, so everything runs under
`jit` and on a sharded batch. In a batch of odd size the middle image is its own partner and stays as it is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError


@struct.dataclass
class Mixing:
    """How much of each image stays; the rest comes from its partner, the batch read backwards."""

    share: jax.Array  # of the image itself at every pixel, float32 [H, W]
    weight: jax.Array  # of the image's own label, float32 []

    def images(self, images: jax.Array) -> jax.Array:
        """Mixes `images [B, H, W, C]`, in float32."""
        share = self.share[None, :, :, None]
        images = images.astype(jnp.float32)
        return share * images + (1.0 - share) * jnp.flip(images, axis=0)

    def targets(self, targets: jax.Array) -> jax.Array:
        """Mixes class probabilities `targets [B, classes]`."""
        return self.weight * targets + (1.0 - self.weight) * jnp.flip(targets, axis=0)


def mixup(rng: jax.Array, image_size: tuple[int, int], alpha: float) -> Mixing:
    """`lambda * x + (1 - lambda) * partner`, lambda from Beta(alpha, alpha) (Zhang et al. 2018, arXiv 1710.09412)."""
    weight = jax.random.beta(rng, alpha, alpha, dtype=jnp.float32)
    return Mixing(share=jnp.broadcast_to(weight, image_size), weight=weight)


def cutmix(rng: jax.Array, image_size: tuple[int, int], alpha: float) -> Mixing:
    """A box of the partner pasted in (Yun et al. 2019, arXiv 1905.04899).

    The box has sides `int(side * sqrt(1 - lambda))`, less one pixel where that is odd, with lambda from
    Beta(alpha, alpha), and a uniform centre. It is clipped to the image; the label's weight is 1 - its share of it.
    """
    size_rng, row_rng, column_rng = jax.random.split(rng, 3)
    ratio = jnp.sqrt(1.0 - jax.random.beta(size_rng, alpha, alpha, dtype=jnp.float32))
    height, width = image_size
    rows = _interval(row_rng, height, ratio)
    columns = _interval(column_rng, width, ratio)
    inside = rows[:, None] & columns[None, :]
    area = rows.sum() * columns.sum()
    return Mixing(share=1.0 - inside.astype(jnp.float32), weight=1.0 - area.astype(jnp.float32) / float(height * width))


def _interval(rng: jax.Array, side: int, ratio: jax.Array) -> jax.Array:
    """Which of `side` positions lie in a random interval of length `2 * (int(side * ratio) // 2)`, clipped."""
    half = jnp.floor(side * ratio).astype(jnp.int32) // 2
    centre = jax.random.randint(rng, (), 0, side, jnp.int32)
    position = jnp.arange(side, dtype=jnp.int32)
    return (position >= centre - half) & (position < centre + half)


def default_config() -> ConfigDict:
    """The `mixing` section: timm's values for fine-tuning on ImageNet."""
    return ConfigDict(
        dict(
            probability=1.0,  # of mixing a batch at all
            mixup_alpha=0.8,  # of mixup's Beta distribution; 0 switches mixup off
            cutmix_alpha=1.0,  # of CutMix's; 0 switches CutMix off
            cutmix_share=0.5,  # of the mixed batches, where both are on
        )
    )


def check_config(mixing: ConfigDict) -> None:
    """Raises ConfigError for a value out of range."""
    for key in ("probability", "cutmix_share"):
        if not 0.0 <= mixing[key] <= 1.0:
            raise ConfigError(f"mixing.{key} is {mixing[key]}; it must lie in [0, 1].")
    for key in ("mixup_alpha", "cutmix_alpha"):
        if mixing[key] < 0.0:
            raise ConfigError(f"mixing.{key} is {mixing[key]}; it must be positive, or 0 to switch it off.")


def is_on(mixing: ConfigDict) -> bool:
    """Whether any batch is ever mixed."""
    return mixing.probability > 0.0 and (mixing.mixup_alpha > 0.0 or mixing.cutmix_alpha > 0.0)


def draw_mixing(rng: jax.Array, image_size: tuple[int, int], mixing: ConfigDict) -> Mixing:
    """One step's mixing by the `mixing` section: mixup, CutMix or nothing, the same for the whole batch."""
    mix_rng, choice_rng, apply_rng = jax.random.split(rng, 3)
    if mixing.mixup_alpha <= 0.0:
        drawn = cutmix(mix_rng, image_size, mixing.cutmix_alpha)
    elif mixing.cutmix_alpha <= 0.0:
        drawn = mixup(mix_rng, image_size, mixing.mixup_alpha)
    else:
        use_cutmix = jax.random.bernoulli(choice_rng, mixing.cutmix_share)
        drawn = jax.tree.map(
            lambda box, blend: jnp.where(use_cutmix, box, blend),
            cutmix(mix_rng, image_size, mixing.cutmix_alpha),
            mixup(mix_rng, image_size, mixing.mixup_alpha),
        )
    applies = jax.random.bernoulli(apply_rng, mixing.probability)
    return jax.tree.map(lambda leaf: jnp.where(applies, leaf, jnp.ones((), jnp.float32)), drawn)
