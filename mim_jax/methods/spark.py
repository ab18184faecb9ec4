"""SparK: "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling".

Tian et al., ICLR 2023, arXiv 2301.03580; official code: keyu-tian/SparK.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.layers.block import drop_path_rngs
from mim_jax.layers.patches import patchify
from mim_jax.masking.random import random_mask
from mim_jax.masking.token_mask import TokenMask, num_kept
from mim_jax.models import backbone, statistics, unet_decoder
from mim_jax.models.densify import NORMS, Densify
from mim_jax.targets.pixels import masked_mean, masked_pictures, patch_statistics, pixel_target


class SparK(Objective):
    """A convolutional network sees the visible patches as sparse maps; a light UNet regresses the hidden ones' pixels.

    Patches are as large as the network's total stride. Its numbers exist at visible sites only, in every layer, so that
    neither the mask's pattern nor the statistics of the norms erode (section 3.1). The maps of all stages are made
    dense, with a mask token for each, and decoded together (section 3.2). The loss is the squared error over hidden
    patches, each normalised by itself (section 3.3).

    BatchNorms, the decoder's included, normalise by the global (micro-)batch, those of encoder and `densify` by its
    visible sites. `encode` and `reconstruct` use running statistics; `encode` runs the network densely.

    Most of a step's cost is in the decoder: with a ResNet-50, two and a half times the dense encoder's multiplications.
    """

    encoder_needs = "masked_maps"

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ResNet-50 as in the paper."""
        return ConfigDict(
            dict(
                model=backbone.module_of("resnet").default_config(),
                decoder=unet_decoder.default_config(),
                densify_norm="batch_norm",  # of the stages' maps: that of the network, so "layer_norm" for a ConvNeXt
                mask_ratio=0.6,
                norm_pix_loss=True,
            )
        )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        if config.densify_norm not in NORMS:
            raise ConfigError(f"densify_norm is {config.densify_norm!r}; choose one of {', '.join(NORMS)}.")
        self.encoder = backbone.build(config, final_norm=False)  # a norm of tokens, which no stage's map goes through
        self.decoder = unet_decoder.build(config, self.encoder)
        # Every block of the decoder reads one map; a stage at the pixels' own scale has none.
        levels = min(len(self.encoder.strides), len(self.decoder.widths) - 1)
        self.densify = Densify(self.decoder.widths[:levels], config.densify_norm, self.encoder.compute)
        num_kept(self.encoder.num_patches, config.mask_ratio, rounding=round)

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`params` of `encoder`, `densify` and `decoder`; `state`, the running statistics of those with BatchNorm."""
        encoder_rng, densify_rng, decoder_rng = jax.random.split(rng, 3)
        images = jnp.zeros((1, *batch["image"].shape[1:]), jnp.float32)
        active = jnp.ones((1, *self.encoder.grid), bool)
        maps, encoder = self.encoder.init_with_output(encoder_rng, images, return_stages=True)
        dense, densify = self.densify.init_with_output(densify_rng, maps[::-1], active)
        decoder = self.decoder.init(decoder_rng, dense)
        return statistics.collect({"encoder": encoder, "densify": densify, "decoder": decoder})

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> TokenMask:
        """Keeps `round(patches * (1 - mask_ratio))`, half to even, random patches of each image.

        By hand: `TokenMask.from_noise(noise, num_keep)` of the noise that the official code sorts, or
        `TokenMask.from_bool(~active)`.
        """
        del variables, clock
        return random_mask(
            rng, batch["image"].shape[0], self.encoder.num_patches, self.config.mask_ratio, rounding=round
        )

    def loss(self, variables: Variables, batch: Batch, masks: TokenMask, rng: jax.Array, clock: Clock):
        """Mean squared error over hidden patches; `aux["terms"]["reconstruction"]` is the same number.

        It is 0 where none is hidden: as in the official code, 1e-8 is added to their number.
        `aux["latent"] [B, N, D]` is the last stage's map, zero where hidden, `aux["pooled"]` its mean where not.
        """
        del clock
        maps, prediction, state = self._forward(variables, batch["image"], masks, rng, train=True)
        target = pixel_target(batch["image"], self.encoder.patch_size, self.config.norm_pix_loss)
        loss = masked_mean(jnp.square(prediction - target).mean(axis=-1), masks.mask, epsilon=1e-8)
        latent = maps[-1].reshape(maps[-1].shape[0], -1, self.encoder.width)
        visible = jnp.maximum((~masks.mask).sum(axis=1, dtype=jnp.float32), 1.0)
        return loss, {
            "terms": {"reconstruction": loss},
            "prediction": prediction,
            "target": target,
            "latent": latent,
            "pooled": latent.astype(jnp.float32).sum(axis=1) / visible[:, None],
            "state": state,
        }

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images by the dense network; `pooled` is the mean over positions."""
        return self.encoder.split(statistics.apply(self.encoder, variables, "encoder", images)[0])

    def reconstruct(self, variables: Variables, batch: Batch, masks: TokenMask) -> dict[str, jax.Array]:
        """Hidden patches from the decoder, visible ones from the image.

        With `norm_pix_loss` a prediction says nothing of a patch's mean and contrast: those of the true patch are used.
        """
        _, prediction, _ = self._forward(variables, batch["image"], masks, None, train=False)
        if self.config.norm_pix_loss:
            mean, deviation = patch_statistics(pixel_target(batch["image"], self.encoder.patch_size, False))
            prediction = prediction * deviation + mean
        return masked_pictures(batch["image"], prediction, masks.mask, self.encoder.patch_size)

    def _forward(self, variables: Variables, images: jax.Array, masks: TokenMask, rng: jax.Array | None, train: bool):
        """The stages' sparse maps, predictions `[B, N, p*p*C]` of all patches, and the new running statistics."""
        active = ~masks.mask.reshape(-1, *self.encoder.grid)
        maps, encoder = statistics.apply(
            self.encoder,
            variables,
            "encoder",
            images,
            active=active,
            num_active=masks.num_keep,
            return_stages=True,
            train=train,
            **drop_path_rngs(rng),
        )
        dense, densify = statistics.apply(self.densify, variables, "densify", maps[::-1], active, train=train)
        pictures, decoder = statistics.apply(self.decoder, variables, "decoder", dense, train=train)
        return maps, patchify(pictures, self.encoder.patch_size), {**encoder, **densify, **decoder}
