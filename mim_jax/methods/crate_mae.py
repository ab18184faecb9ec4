"""CRATE-MAE: "Masked Completion via Structured Diffusion with White-Box Transformers".

Pai et al., ICLR 2024, arXiv 2404.02446. Official code: Ma-Lab-Berkeley/CRATE, `model/crate_ae`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.layers.block import drop_path_rngs
from mim_jax.masking.random import random_mask
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models import crate, crate_decoder
from mim_jax.models.masked_autoencoder import MaskedAutoencoder


class CrateMAE(MaskedAutoencoder):
    """The masked autoencoder of which each encoder layer compresses, then sparsifies, and each decoder layer undoes it.

    Unlike MAE's, the encoder is given mask tokens, so encoder and decoder both process every patch: each is as long as
    the other, and masking saves nothing. Masks and loss are MAE's; pixels are not normalised.
    """

    encoder_needs = "crate"

    @classmethod
    def default_config(cls) -> ConfigDict:
        """CRATE-MAE-B."""
        return ConfigDict(
            dict(
                model=crate.default_config(),
                decoder=crate_decoder.default_config(),
                mask_ratio=0.75,
                norm_pix_loss=False,
            )
        )

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "decoder"}}`."""
        encoder_rng, decoder_rng = jax.random.split(rng)
        images = jnp.zeros(batch["image"].shape, jnp.float32)[:1]
        hidden = jnp.zeros((1, self.encoder.num_patches), bool)
        latent, encoder = self.encoder.init_with_output(encoder_rng, images, hidden=hidden)
        decoder = self.decoder.init(decoder_rng, latent)
        return {"params": {"encoder": encoder["params"], "decoder": decoder["params"]}}

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> TokenMask:
        """A uniformly random `mask_ratio` of each image's patches."""
        del variables, clock
        return random_mask(rng, batch["image"].shape[0], self.encoder.num_patches, self.config.mask_ratio)

    def _build_encoder(self) -> crate.Crate:
        return crate.build(self.config, mask_token=True)

    def _build_decoder(self) -> crate_decoder.CrateDecoder:
        return crate_decoder.build(self.config, self.encoder)

    def _forward(self, variables: Variables, images: jax.Array, masks: TokenMask, rng: jax.Array | None):
        """The latent of all tokens and the decoder's output for all patches; no drop path without `rng`."""
        params = variables["params"]
        latent = self.encoder.apply({"params": params["encoder"]}, images, hidden=masks.mask, **drop_path_rngs(rng))
        return latent, self.decoder.apply({"params": params["decoder"]}, latent)
