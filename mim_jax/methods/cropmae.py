"""CropMAE: "Efficient Image Pre-Training with Siamese Cropped Masked Autoencoders".

Eymael et al., ECCV 2024, arXiv 2403.17823; official code alexandre-eymael/CropMAE.
"""

from __future__ import annotations

import jax
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.masking.random import random_mask
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models import cross_decoder, vit
from mim_jax.models.cross_autoencoder import CrossAutoencoder


class CropMAE(CrossAutoencoder):
    """Reconstructs one crop of an image from two of its patches and another crop of the same image.

    `image` is the masked target (the local crop in the paper's `data.views="global_to_local"`), `view2` the reference;
    the official code has them the other way round, `imgs[:, 1]` and `imgs[:, 0]`. Dropout is off without an rng.
    The decoder's blocks are post-norm, in the order cross-attention, MLP, self-attention, and its memory gets no
    positions of the decoder.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """The paper's ViT-S/16."""
        model = vit.default_config()
        model.update(vit.vit_size("S"))
        decoder = dict(
            width=256,
            depth=4,
            heads=8,
            mlp_hidden=2048,  # PyTorch's default, which the official code leaves as it is for every width
            dropout=0.1,  # in training only; PyTorch's default as well
        )
        return ConfigDict(dict(model=model, decoder=decoder, mask_ratio=0.985, norm_pix_loss=True))

    def _build_decoder(self) -> cross_decoder.CrossDecoder:
        decoder = self.config.decoder
        return cross_decoder.build(
            self.config,
            self.encoder,
            mlp_hidden=decoder.mlp_hidden,
            dropout=decoder.dropout,
            norm_first=False,
            memory_positions=False,
        )

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> TokenMask:
        """Hides all but `int(N * (1 - mask_ratio))` random patches of `image`: 2 of 196 stay.

        By hand: `TokenMask.from_noise(noise, num_keep)`, with the noise of the official code.
        """
        del variables, clock
        return random_mask(rng, batch["image"].shape[0], self.encoder.num_patches, self.config.mask_ratio)
