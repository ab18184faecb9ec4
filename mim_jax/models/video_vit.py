"""V-JEPA's Vision Transformer over the tubes of a clip; over an image it is an ordinary ViT without class token."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.layers.patches import PatchEmbed
from mim_jax.layers.placement import split_over_batch
from mim_jax.layers.position import PositionTable
from mim_jax.layers.tubes import Tube, as_clips, sincos_table_3d, tubify
from mim_jax.masking.token_mask import take_tokens
from mim_jax.models import vit
from mim_jax.models.vit import ViT, check_image_size

_UNSUPPORTED = ("class_token", "relative_bias", "num_registers", "pre_norm")


class VideoViT(ViT):
    """A ViT whose patches go through `tubelet_size` frames, and which can leave slots of its sequences unused.

    Its parameters have the names of a `ViT`'s; with one frame they are those of one, in the same shapes.
    """

    num_frames: int = 1
    tubelet_size: int = 1

    @property
    def tube(self) -> Tube:
        """Frames, rows and columns of pixels of a token."""
        return (self.tubelet_size, *self.patch_size)

    @property
    def tube_grid(self) -> tuple[int, int, int]:
        """Tubes `(times, rows, columns)`."""
        return (self.num_frames // self.tubelet_size, *self.grid)

    @property
    def position_grid(self) -> tuple[int, ...]:
        """The grid positions are given in: `(rows, columns)` of an image, `tube_grid` of a clip."""
        return self.grid if self.num_frames == 1 else self.tube_grid

    @property
    def num_patches(self) -> int:
        """Number of tubes of an intact clip."""
        return math.prod(self.tube_grid)

    @nn.compact
    def __call__(
        self,
        clips: jax.Array,
        *,
        ids_keep: jax.Array | None = None,
        valid: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Encodes clips `[B, T, H, W, C]` or images `[B, H, W, C]` (see `as_clips`).

        Args:
          clips: normalised pixels.
          ids_keep: `[B, K]` tubes to encode, in this order; all others are dropped before the first matrix product.
          valid: `[B, K]` bool; no token attends to a slot where it is false, and what comes out there has no meaning.
          deterministic: no drop path; otherwise the rng stream "drop_path" is needed.

        Returns:
          Tokens `[B, K, D]` after the final norm.
        """
        clips = as_clips(clips, self.num_frames)
        check_image_size(clips.shape[1:4], (self.num_frames, *self.image_size))
        tubes = tubify(clips, self.tube)
        table = positions(self.position_grid, self.width, self.position)
        if ids_keep is not None:
            tubes = take_tokens(tubes, ids_keep)
        if valid is not None:  # the pixels of slots that are not in use go nowhere, not even into unused outputs
            tubes = jnp.where(valid[:, :, None], tubes, jnp.zeros((), tubes.dtype))
        x = PatchEmbed(self.width, self.init_scheme, self.compute, self.patch_bias, name="patch_embed")(tubes)
        if table is not None:
            x = x + (table[None] if ids_keep is None else table[ids_keep]).astype(x.dtype)
        x, _ = self.block_stack(name="stack")(x, None, valid, deterministic=deterministic)
        return split_over_batch(self._norm("norm")(x)) if self.final_norm else x


def positions(grid: tuple[int, ...], width: int, position: str) -> jax.Array | None:
    """The table `[N, width]` that is added to tokens on `grid`, to be called within a compact method.

    Of a clip's grid of three axes it is V-JEPA's fixed one; of an image's it is what `position` says (`POSITIONS`).
    """
    if len(grid) == 3:
        return jnp.asarray(sincos_table_3d(grid, width))
    return PositionTable(grid, width, position, name="position")()[0]


def default_config() -> ConfigDict:
    """The `model` section of a ViT-B/16 for images, initialised as in V-JEPA."""
    model = vit.default_config()
    model.update(class_token=False, pool="mean", init_scheme="normal")
    model.tubelet_size = 1
    return model


def build(config: ConfigDict) -> VideoViT:
    """The encoder a run's `config` asks for (`image_size`, `num_frames`, `model`, `compute`).

    Raises:
      ConfigError: sizes that do not divide, or a choice that is unknown or made for other encoders.
    """
    model, frames = config.model, config.num_frames
    for key in _UNSUPPORTED:
        if model[key]:
            raise ConfigError(
                f"model.{key} is {model[key]!r}, which {config.method} does not work with; switch it off."
            )
    if model.tubelet_size < 1 or frames < 1 or frames % model.tubelet_size:
        raise ConfigError(
            f"num_frames {frames} is not divisible by model.tubelet_size {model.tubelet_size}; change one of the two."
        )
    if frames > 1 and model.position != "sincos":
        raise ConfigError(f"model.position is {model.position!r}; clips have fixed positions alone, choose 'sincos'.")
    if model.position == "rope":
        raise ConfigError(
            f"model.position is 'rope', which {config.method} does not work with; choose 'sincos' or another kind of "
            "added positions."
        )
    image_encoder = vit.build(config)
    fields = {f.name for f in dataclasses.fields(ViT)} - {"parent", "name"}
    return VideoViT(
        **{name: getattr(image_encoder, name) for name in fields}, num_frames=frames, tubelet_size=model.tubelet_size
    )
