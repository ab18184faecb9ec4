"""CroCo: self-supervised pre-training for 3D vision tasks by cross-view completion, versions 1 and 2.

Weinzaepfel et al., NeurIPS 2022, arXiv 2210.10716, and ICCV 2023, arXiv 2211.10408; official code naver/croco.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.errors import ConfigError
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models import cross_decoder, vit
from mim_jax.models.cross_autoencoder import CrossAutoencoder


class CroCo(CrossAutoencoder):
    """Reconstructs a masked view of a scene from its visible patches and another viewpoint.

    `image` is the masked first view, `view2` the second. There is no class token. The first version adds fixed sin-cos
    positions to the encoder's input and to both inputs of the decoder (`model.position="sincos"`); the second turns
    queries and keys instead, in the decoder's cross-attention as well (`"rope"`).
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """The first version's ViT-B/16."""
        model = vit.default_config()
        model.update(class_token=False, pool="mean")
        decoder = dict(width=512, depth=8, heads=16, mlp_ratio=4.0)
        return ConfigDict(dict(model=model, decoder=decoder, mask_ratio=0.9, norm_pix_loss=True))

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        if config.model.class_token:
            raise ConfigError("model.class_token is True; CroCo has none, set it to False.")

    def _count_kept(self) -> int:
        num_patches, ratio = self.encoder.num_patches, self.config.mask_ratio
        # The official code truncates the number of hidden patches, not that of visible ones.
        num_hidden = int(num_patches * ratio)
        if not 0 < num_hidden < num_patches:
            raise ConfigError(
                f"mask_ratio {ratio} hides {num_hidden} of {num_patches} patches; choose one that hides at least one "
                "and keeps at least one."
            )
        return num_patches - num_hidden

    def _build_decoder(self) -> cross_decoder.CrossDecoder:
        decoder = self.config.decoder
        return cross_decoder.build(self.config, self.encoder, mlp_hidden=int(decoder.width * decoder.mlp_ratio))

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> TokenMask:
        """Hides `int(mask_ratio * N)` random patches of `image`: 176 of 196.

        By hand: `TokenMask.from_bool(mask)` with the official mask. That code compares a permutation with the number,
        `argsort(noise) < num_hidden`, and not the noise's ranks; so does this.
        """
        del variables, clock
        num_patches = self.encoder.num_patches
        noise = jax.random.uniform(rng, (batch["image"].shape[0], num_patches), jnp.float32)
        return TokenMask.from_bool(jnp.argsort(noise, axis=1) < num_patches - self.num_keep, self.num_keep)
