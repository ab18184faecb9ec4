"""MAE: "Masked Autoencoders Are Scalable Vision Learners", He et al., CVPR 2022, arXiv 2111.06377."""

from __future__ import annotations

import jax
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.masking.random import random_mask
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models import masked_token_optimization
from mim_jax.models.masked_autoencoder import MaskedAutoencoder
from mim_jax.models.masked_token_optimization import MaskedTokenOptimization, Report


class MAE(MaskedAutoencoder):
    """The masked autoencoder with uniformly random masks.

    The section `mto` switches on masked token optimization (Choi et al. 2024) of the decoder, which is no part of MAE.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 as in the paper."""
        config = super().default_config()
        config.mto = masked_token_optimization.default_config()
        return config

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        prefix = int(self.encoder.class_token)
        self.mto = MaskedTokenOptimization(config.mto, self.decoder.depth, prefix, "embed", visible_only=True)

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> TokenMask:
        """A uniformly random `mask_ratio` of each image's patches."""
        del variables, clock
        return random_mask(rng, batch["image"].shape[0], self.encoder.num_patches, self.config.mask_ratio)

    def loss(self, variables: Variables, batch: Batch, masks: TokenMask, rng: jax.Array, clock: Clock):
        """Mean squared error over hidden patches, `aux["terms"]["reconstruction"]`; and MTO's terms if on."""
        latent, prediction, report = self._forward_and_report(variables, batch["image"], masks, rng)
        loss, aux = self._regress(batch, masks, latent, prediction)
        return self.mto.add(loss, aux, report, clock)

    def _forward(self, variables: Variables, images: jax.Array, masks: TokenMask, rng: jax.Array | None):
        return self._forward_and_report(variables, images, masks, rng)[:2]

    def _forward_and_report(
        self, variables: Variables, images: jax.Array, masks: TokenMask, rng: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, Report | None]:
        latent = self._encode_visible(variables, images, masks, rng)
        decoder = variables["params"]["decoder"]
        prediction, report = self.mto.apply(self.decoder, decoder, latent, masks, hidden_tokens=masks.mask)
        return latent, prediction, report
