"""What all encoders have in common."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mim_jax.layers.patches import patch_grid


class Encoder:
    """A frozen Flax module from images to tokens `[B, (1 +) N, D]`, the class token first where there is one.

    The others are in raster order over `grid`. Those encoders that take mask tokens also have `embed_grid` and
    `embed_size`: the grid of the tokens that may be hidden, and their pixels, which are finer than the output's in a
    hierarchical network. Those with BatchNorm take `train=True` (see `mim_jax.models.statistics`).
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]  # pixels (rows, columns) of an output token
    width: int  # of the output's tokens
    compute: Any
    pool: str = "mean"  # what `split` calls "pooled": the "class" token or the "mean" over the other ones

    @property
    def class_token(self) -> bool:
        """There is none, unless an encoder says otherwise."""
        return False

    @property
    def grid(self) -> tuple[int, int]:
        """Output tokens `(rows, columns)`."""
        return patch_grid(self.image_size, self.patch_size)

    @property
    def num_patches(self) -> int:
        """Output tokens of an intact image, without the class token."""
        return self.grid[0] * self.grid[1]

    def split(self, tokens: jax.Array) -> dict[str, jax.Array]:
        """`{"tokens": patch tokens [B, N, D], "pooled": [B, D]}` in float32 from the encoder's output."""
        tokens = tokens.astype(jnp.float32)
        patches = tokens[:, int(self.class_token) :]
        return {"tokens": patches, "pooled": tokens[:, 0] if self.pool == "class" else patches.mean(axis=1)}


class PatchEncoder(Encoder):
    """An encoder that returns a token for each patch it embeds."""

    @property
    def embed_size(self) -> tuple[int, int]:
        """Pixels of a token that may be hidden: a patch."""
        return self.patch_size

    @property
    def embed_grid(self) -> tuple[int, int]:
        """Tokens that may be hidden, `(rows, columns)`: all patches."""
        return self.grid
