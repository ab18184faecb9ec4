"""Frozen tokenizers: networks that give every patch of an image the number of a visual token."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from mim_jax.contract import Batch, FrozenTeacher, Objective, Variables
from mim_jax.fields import optional
from mim_jax.layers.compute import Compute
from mim_jax.models import dvae
from mim_jax.models.teachers import teacher_config
from mim_jax.normalization import normalization


def default_config() -> ConfigDict:
    """The `tokenizer` section, with DALL-E's sizes.

    `weights` is the run of a `dvae`, a weights file read through `layout`, "random", or empty. OpenAI publishes its
    encoder as a pickled module; how to make a file of it is said in `configs/cae_vit_b16_in1k.py`.
    """
    return ConfigDict(
        dict(
            weights="",
            layout=optional(str),  # None: that of OpenAI's
            dtype=optional(str),  # of its computation; None: that of `compute` (the official code: half precision)
            **dvae.network_config(),
        )
    )


class TokenizerEncoder(Objective):
    """The encoder of a discrete VAE by itself, which is what the weights of a tokenizer are read into."""

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.encoder = dvae.build_encoder(config.model, Compute.from_config(config.compute))

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder"}}`."""
        images = jnp.zeros((1, *batch["image"].shape[1:]), jnp.float32)
        return {"params": {"encoder": self.encoder.init(rng, images)["params"]}}


class Tokenizer(FrozenTeacher):
    """A frozen encoder of a discrete VAE. Attributes: `section`, `objective`, `layout`, `num_codes`."""

    layout = "openai/dall_e"

    def __init__(self, section: ConfigDict, objective: TokenizerEncoder):
        self.section, self.objective = section, objective
        self.num_codes = objective.encoder.num_codes
        self._mean, self._std = normalization(objective.config)

    def take(self, variables: Variables) -> Any:
        """Its weights from variables of `objective`, or of a `dvae`."""
        return variables["params"]["encoder"]

    def __call__(self, params: Any, images: jax.Array) -> jax.Array:
        """Tokens `[B, h * w]` int32 of `images [B, H, W, C]` in the batch's normalisation."""
        _, logits = self.objective.encoder.apply(
            {"params": jax.lax.stop_gradient(params)}, dvae.squeeze_pixels(self.pixels(images))
        )
        return logits.argmax(axis=-1).reshape(images.shape[0], -1).astype(jnp.int32)

    def pixels(self, images: jax.Array) -> jax.Array:
        """What it sees of `images`: pixels in [0, 1], at the size that gives one token for each patch.

        The official code cuts the same crop out of the photo twice, and resizes it by a Lanczos filter for the
        tokenizer; here the filter is applied to the crop as the encoder has it, after another resize.
        """
        images = images.astype(jnp.float32) * self._std[None, None, None] + self._mean[None, None, None]
        shape = (images.shape[0], *self.objective.config.image_size, images.shape[3])
        if images.shape != shape:
            images = jax.image.resize(images, shape, "lanczos3", precision="highest")
        return jax.lax.stop_gradient(jnp.clip(images, 0.0, 1.0))


def build(section: ConfigDict, config: ConfigDict, grid: tuple[int, int]) -> Tokenizer:
    """The tokenizer a `section` of a run's `config` asks for, with one token for each patch of `grid`.

    Raises:
      ConfigError: impossible sizes.
    """
    dvae.check_network(section, "tokenizer")
    own = teacher_config(section, config)
    own.model = ConfigDict(dict(backbone="dvae", **{key: section[key] for key in dvae.network_config()}))
    stride = 2 ** (section.groups - 1)
    with own.ignore_type():
        own.image_size = (grid[0] * stride, grid[1] * stride)
    return Tokenizer(section, TokenizerEncoder(FrozenConfigDict(own)))
