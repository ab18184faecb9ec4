"""What stands in an image's hidden patches (GMML's corruptions): nothing, noise, or a part of another image."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from mim_jax.layers.patches import patchify, unpatchify
from mim_jax.masking.token_mask import TokenMask

REPLACEMENTS = ("mask_token", "zeros", "noise", "other_image")


@struct.dataclass
class Corruption:
    """Which patches of each image are hidden, and what chance puts there. By hand: `Corruption.of(token_mask)`."""

    hidden: TokenMask
    seed: jax.Array  # [B] uint32, of the noise, and by its remainder of which other image it is

    @classmethod
    def of(cls, hidden: TokenMask) -> Corruption:
        """With seed 0 throughout: every image gets the same noise, or the parts of its successor."""
        return cls(hidden=hidden, seed=jnp.zeros(hidden.mask.shape[:1], jnp.uint32))


class CorruptedViews(NamedTuple):
    """The corruptions of two views; any pair of them does as well."""

    view1: Corruption
    view2: Corruption


def two_views(masks: TokenMask | Corruption | tuple) -> CorruptedViews:
    """The corruptions of both views from a pair of `Corruption` or `TokenMask`, or from one that holds for both."""
    pair = (masks, masks) if isinstance(masks, TokenMask | Corruption) else masks
    return CorruptedViews(*(Corruption.of(mask) if isinstance(mask, TokenMask) else mask for mask in pair))


def corrupt(images: jax.Array, corruption: Corruption, patch_size: tuple[int, int], replacement: str) -> jax.Array:
    """`images [B, H, W, C]` with hidden patches replaced as `replacement`, one of "zeros", "noise" and "other_image",
    says.

    Noise is standard normal, as normalised pixels are. Another image is one of the same (micro-)batch, and gives the
    patches of the same places; in a batch of one it is the image itself.
    """
    patches = patchify(images, patch_size)
    if replacement == "zeros":
        filling = jnp.zeros_like(patches)
    elif replacement == "noise":
        draw = lambda seed: jax.random.normal(jax.random.key(seed), patches.shape[1:], patches.dtype)  # noqa: E731
        filling = jax.vmap(draw)(corruption.seed)
    else:
        filling = patches[other_images(corruption.seed)]
    grid = (images.shape[1] // patch_size[0], images.shape[2] // patch_size[1])
    return unpatchify(jnp.where(corruption.hidden.mask[:, :, None], filling, patches), patch_size, grid)


def other_images(seed: jax.Array) -> jax.Array:
    """For each image of a batch the number of another one, `[B]` int32, uniform for uniform `seed [B]`.

    Relative to the image's own number, so that it remains another one whatever part of a batch this is.
    """
    batch = seed.shape[0]
    step = 1 + (seed % max(batch - 1, 1)).astype(jnp.int32)
    return (jnp.arange(batch, dtype=jnp.int32) + step) % batch
