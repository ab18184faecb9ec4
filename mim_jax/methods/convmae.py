"""ConvMAE, later MCMAE: "MCMAE: Masked Convolution Meets Masked Autoencoders".

Gao et al., NeurIPS 2022, arXiv 2205.03892. Official code: Alpha-VL/ConvMAE.
"""

from __future__ import annotations

import jax
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.masking.random import random_mask
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models import backbone, conv_vit
from mim_jax.models.masked_autoencoder import MaskedAutoencoder


class ConvMAE(MaskedAutoencoder):
    """The masked autoencoder with a hybrid encoder: masked convolutions at strides 4 and 8, then a ViT at stride 16.

    The mask is drawn on the coarsest grid, so that every block of pixels is wholly kept or wholly hidden, and the
    outputs of all three stages are fused before the decoder. There is no class token; `encode` fuses too, which the
    official downstream models do not.
    """

    encoder_needs = "token_dropping"

    @classmethod
    def default_config(cls) -> ConfigDict:
        """The Base size, the only one in the official code."""
        config = super().default_config()
        config.model = conv_vit.default_config()
        return config

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> TokenMask:
        """A uniformly random `mask_ratio` of each image's patches."""
        del variables, clock
        return random_mask(rng, batch["image"].shape[0], self.encoder.num_patches, self.config.mask_ratio)

    def _build_encoder(self) -> backbone.Encoder:
        return backbone.build(self.config)
