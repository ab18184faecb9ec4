"""A frozen encoder of clips or images as a teacher, of the student's tokens but of a size of its own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from mim_jax.fields import optional
from mim_jax.models.masked_clips import ClipEncoder
from mim_jax.models.teachers import Architecture, ViTTeacher, teacher_config

_ARCHITECTURE = Architecture("facebookresearch/jepa", {}, None)


class VideoTeacher(ViTTeacher):
    """A frozen encoder that sees whole clips, in the normalisation of the batch.

    Its weights are those of any run or file that has an encoder of clips of its size.
    """

    def __init__(self, section: ConfigDict, objective: ClipEncoder):
        super().__init__(section, objective, _ARCHITECTURE)

    def __call__(self, params: Any, clips: jax.Array) -> jax.Array:
        """Tokens `[B, N, D]` of intact clips after the final norm, float32, without gradient."""
        tokens = self.encoder.apply({"params": jax.lax.stop_gradient(params)}, jax.lax.stop_gradient(clips))
        return jax.lax.stop_gradient(tokens).astype(jnp.float32)


def default_config() -> ConfigDict:
    """A `teacher` section of a ViT-B's size."""
    return ConfigDict(
        dict(
            weights="",  # a run's directory, a weights file read through `layout`, "random", or empty: `init_from`
            layout=optional(str),  # None: facebookresearch/jepa
            dtype=optional(str),  # of its computation and its matrices; None: that of `compute`
            width=768,
            depth=12,
            heads=12,
            mlp_ratio=4.0,
        )
    )


def build(section: ConfigDict, config: ConfigDict) -> VideoTeacher:
    """The teacher that `section` asks for, on the tokens of a run's `config`.

    Raises:
      ConfigError: as `video_vit.build`.
    """
    own = teacher_config(section, config)
    own.model.update({key: section[key] for key in ("width", "depth", "heads", "mlp_ratio")})
    return VideoTeacher(section, ClipEncoder(FrozenConfigDict(own)))
