"""The masked autoencoder of He et al. 2022 (arXiv 2111.06377): MAE itself, and what changes a part of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.layers.block import drop_path_rngs
from mim_jax.masking.token_mask import TokenMask, num_kept
from mim_jax.models import pixel_decoder, vit
from mim_jax.targets.pixels import masked_mean, masked_pictures, patch_statistics, pixel_target


class MaskedAutoencoder(Objective):
    """Encodes the visible patches only; a light decoder regresses the pixels of the hidden ones.

    The loss is the squared error over hidden patches (section 3); `norm_pix_loss` normalises each target patch. What a
    method adds is its `masks`, and whatever else it overrides.
    """

    #: The decoder; one with more outputs than the pixels comes with a `loss` of its own.
    decoder_kind = pixel_decoder.PixelDecoder

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 as in the paper."""
        return ConfigDict(
            dict(
                model=vit.default_config(),
                decoder=pixel_decoder.default_config(),
                mask_ratio=0.75,
                norm_pix_loss=True,
            )
        )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.encoder = self._build_encoder()
        self.decoder = self._build_decoder()
        if config.model.get("relative_bias"):
            raise ConfigError("model.relative_bias is True; it needs all patches, but an autoencoder drops some.")
        self.num_keep = self._count_kept()

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "decoder"}}`."""
        encoder_rng, decoder_rng = jax.random.split(rng)
        images = jnp.zeros(batch["image"].shape, jnp.float32)[:1]
        noise = jax.random.uniform(rng, (1, self.encoder.num_patches), jnp.float32)
        mask = TokenMask.from_noise(noise, self.num_keep)
        latent, encoder = self.encoder.init_with_output(encoder_rng, images, ids_keep=mask.ids_keep)
        decoder = self.decoder.init(decoder_rng, latent, mask)
        return {"params": {"encoder": encoder["params"], "decoder": decoder["params"]}}

    def loss(self, variables: Variables, batch: Batch, masks: TokenMask, rng: jax.Array, clock: Clock):
        """Mean squared error over hidden patches; `aux["terms"]["reconstruction"]` is the same number."""
        del clock
        return self._regress(batch, masks, *self._predict(variables, batch, masks, rng))

    def _regress(self, batch: Batch, masks: TokenMask, latent: jax.Array, prediction: jax.Array):
        """Loss and `aux` of predictions `[B, N, p*p*C]`."""
        target = pixel_target(batch["image"], self.encoder.patch_size, self.config.norm_pix_loss)
        error = jnp.square(prediction - target).mean(axis=-1)
        loss = masked_mean(error, masks.mask)
        return loss, {
            "terms": {"reconstruction": loss},
            "prediction": prediction,
            "target": target,
            "latent": latent,
        }

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images; `pooled` is what `model.pool` says, after the final norm."""
        return self.encoder.split(self.encoder.apply({"params": variables["params"]["encoder"]}, images))

    def reconstruct(self, variables: Variables, batch: Batch, masks: TokenMask) -> dict[str, jax.Array]:
        """Hidden patches from the decoder, visible ones from the image.

        With `norm_pix_loss` a prediction says nothing of a patch's mean and contrast: those of the true patch are used,
        as in the paper's figures.
        """
        _, prediction = self._predict(variables, batch, masks, None)
        if self.config.norm_pix_loss:
            mean, deviation = patch_statistics(pixel_target(batch["image"], self.encoder.patch_size, False))
            prediction = prediction * deviation + mean
        return masked_pictures(batch["image"], prediction, masks.mask, self.encoder.patch_size)

    def _count_kept(self) -> int:
        """Visible patches of an image; raises ConfigError where none would be visible, or none hidden."""
        return num_kept(self.encoder.num_patches, self.config.mask_ratio)

    def _build_encoder(self) -> nn.Module:
        return vit.build(self.config)

    def _build_decoder(self) -> nn.Module:
        return pixel_decoder.build(self.config, self.encoder, self.decoder_kind)

    def _predict(self, variables: Variables, batch: Batch, masks: TokenMask, rng: jax.Array | None):
        """`_forward` on what a method reads from the batch: here the images."""
        return self._forward(variables, batch["image"], masks, rng)

    def _forward(self, variables: Variables, images: jax.Array, masks: TokenMask, rng: jax.Array | None):
        """The latent of the visible patches and the decoder's output for all; no drop path without `rng`."""
        latent = self._encode_visible(variables, images, masks, rng)
        return latent, self.decoder.apply({"params": variables["params"]["decoder"]}, latent, masks)

    def _encode_visible(self, variables: Variables, images: jax.Array, masks: TokenMask, rng: jax.Array | None):
        return self.encoder.apply(
            {"params": variables["params"]["encoder"]},
            images,
            ids_keep=masks.ids_keep,
            **drop_path_rngs(rng),
        )
