"""A frozen masked autoencoder whose decoder's hidden states are learned from (G2SD, arXiv 2302.14771)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from mim_jax.contract import FrozenTeacher, Variables
from mim_jax.errors import ConfigError
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models import pixel_decoder, teachers
from mim_jax.models.masked_autoencoder import MaskedAutoencoder
from mim_jax.models.pixel_decoder import DecoderTrunk
from mim_jax.models.teachers import ViTTeacher, cast_matrices


class AutoencoderFeatures(NamedTuple):
    """Residual streams before any norm; nothing of them has a gradient."""

    encoder: jax.Array  # after its last block, of the class token and the visible patches, `[B, 1 + K, C]`
    decoder: jax.Array  # after the last block that is run, of all tokens in raster order, `[B, 1 + N, D]`


class AutoencoderTeacher(FrozenTeacher):
    """A frozen masked autoencoder: its whole encoder, and its decoder up to some block.

    Attributes: `section`, `objective` (the whole masked autoencoder: weights without a decoder are refused when they
    are loaded), `layout` and `encoder` as of `ViTTeacher`, `decoder` (the blocks that are run) and `truncated`.
    """

    truncated = ("decoder",)  # whose norm and head at least are never run

    def __init__(self, encoder: ViTTeacher, objective: MaskedAutoencoder, decoder: DecoderTrunk):
        self._encoder, self.objective, self.decoder = encoder, objective, decoder
        self.section, self.layout, self.encoder = encoder.section, encoder.layout, encoder.encoder
        self.constants = encoder.constants

    def take(self, variables: Variables) -> Any:
        """Its weights from variables of `objective`: those of what is run."""
        decoder = variables["params"]["decoder"]
        blocks = jax.tree.map(lambda x: x[: self.decoder.depth], decoder["stack"]["blocks"])
        trunk = {"embed": decoder["embed"], "mask_token": decoder["mask_token"], "stack": {"blocks": blocks}}
        return {
            "encoder": self._encoder.take(variables),
            "decoder": cast_matrices(trunk, self.decoder.compute.jax_dtype),
        }

    def __call__(self, params: Any, images: jax.Array, mask: TokenMask) -> AutoencoderFeatures:
        """Hidden states for the visible patches of `images [B, H, W, C]` as the student's batch has them."""
        features = self._encoder(params["encoder"], images, mask.ids_keep)
        trunk = {"params": jax.lax.stop_gradient(params["decoder"])}
        decoded = jax.lax.stop_gradient(self.decoder.apply(trunk, features.tokens, mask))
        return AutoencoderFeatures(features.layers[-1], decoded)


def section(name: str, **changes: Any) -> ConfigDict:
    """`teachers.section` with MAE's `decoder` inside, of which the first `decoder.until` blocks are run."""
    config = teachers.section(name)
    config.decoder = pixel_decoder.default_config()
    config.decoder.until = 4
    config.update(changes)
    return config


def build(section: ConfigDict, config: ConfigDict) -> AutoencoderTeacher:
    """The teacher a `section` of a run's `config` names.

    Raises:
      ConfigError: there is no such architecture, or its sizes do not fit the student's.
    """
    encoder = teachers.build(section, config)
    own = ConfigDict(encoder.objective.config.to_dict())
    own.decoder = ConfigDict({key: section.decoder[key] for key in pixel_decoder.default_config()})
    objective = MaskedAutoencoder(FrozenConfigDict(own))
    depth, until = section.decoder.depth, section.decoder.until
    if not 1 <= until <= depth:
        raise ConfigError(f"teacher.decoder.until is {until}; the teacher's decoder has {depth} blocks.")
    trunk = pixel_decoder.build(objective.config, objective.encoder, DecoderTrunk)
    return AutoencoderTeacher(encoder, objective, trunk.clone(depth=until))
