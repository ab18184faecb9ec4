"""ConvMAE, later MCMAE: "MCMAE: Masked Convolution Meets Masked Autoencoders".

Gao et al., NeurIPS 2022, arXiv 2205.03892. Official code: Alpha-VL/ConvMAE; Alpha-VL/FastConvMAE.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.masking.complementary import check_complementary, complementary_views
from mim_jax.masking.random import random_mask
from mim_jax.masking.token_mask import TokenMask, first_views_first
from mim_jax.models import backbone, conv_vit
from mim_jax.models.masked_autoencoder import MaskedAutoencoder


class ConvMAE(MaskedAutoencoder):
    """The masked autoencoder with a hybrid encoder: masked convolutions at strides 4 and 8, then a ViT at stride 16.

    The mask is drawn on the coarsest grid, so that every block of pixels is wholly kept or wholly hidden, and the
    outputs of all three stages are fused before the decoder. There is no class token; `encode` fuses too, which the
    official downstream models do not.

    `complementary` makes it FastConvMAE: as many views of each image as it takes to show every patch once, four at
    75 %. The encoder then does about the work of an intact image, the decoder that of four. The official code convolves
    one map once for each view; here each view's patches are encoded as by ConvMAE, which gives the same numbers.
    `masks` are those of the first views; the others take the hidden patches in the order they stand in there.
    """

    encoder_needs = "token_dropping"

    @classmethod
    def default_config(cls) -> ConfigDict:
        """The Base size, the only one in the official code."""
        config = super().default_config()
        config.model = conv_vit.default_config()
        config.complementary = False  # True: FastConvMAE
        return config

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        if config.complementary:
            check_complementary(self.encoder.num_patches, self.num_keep)

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> TokenMask:
        """A uniformly random `mask_ratio` of each image's patches."""
        del variables, clock
        return random_mask(rng, batch["image"].shape[0], self.encoder.num_patches, self.config.mask_ratio)

    def loss(self, variables: Variables, batch: Batch, masks: TokenMask, rng: jax.Array, clock: Clock):
        """MAE's loss, over the hidden patches of all views.

        Where there are several, the rows of `aux` have the first views of all images before the second ones.
        """
        if not self.config.complementary:
            return super().loss(variables, batch, masks, rng, clock)
        views = complementary_views(masks)
        count = views.mask.shape[0] // masks.mask.shape[0]
        repeated = {**batch, "image": jnp.repeat(batch["image"], count, axis=0)}
        loss, aux = self._regress(repeated, views, *self._predict(variables, batch, views, rng))
        rows = {name: first_views_first(rows, count) for name, rows in aux.items() if name != "terms"}
        return loss, {"terms": aux["terms"], **rows}

    def _build_encoder(self) -> backbone.Encoder:
        return backbone.build(self.config)
