"""MFM: "Masked Frequency Modeling for Self-Supervised Visual Pre-Training".

Xie et al., ICLR 2023, arXiv 2206.07706; official code: Jiahao000/MFM.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.layers.block import drop_path_rngs
from mim_jax.layers.initializers import rescale_residual_kernels
from mim_jax.layers.patches import as_pair, unpatchify
from mim_jax.masking.degradation import Downsampling, GaussianBlur, GaussianNoise
from mim_jax.masking.frequency import FrequencyFilter, keep_frequencies
from mim_jax.models import backbone, pixel_head, statistics, vit
from mim_jax.normalization import normalization
from mim_jax.targets.spectrum import FrequencyLoss

CORRUPTIONS = ("frequency", "super_resolution", "deblur", "denoise")


class MFM(Objective):
    """Sees an image without its low or its high frequencies, and predicts the image by a linear head.

    The loss is the distance of the two spectra over the frequencies that were removed (section 3.2), or over all of
    them for the restoration tasks of section 3.3, which `corruption` selects. No token is dropped or replaced, so that
    a step costs what supervised training costs.

    Pixels are corrupted in [0, 1]: with the constants of the config's `data` section, by which the batch was
    normalised and is normalised again. Spectra are compared in normalised units.

    The mean over removed frequencies is one for the whole batch, as on one official device: of the 50,176 frequencies
    at 224, a low-pass image counts with 49,383 and a high-pass image with 793. (Official replicas each average over
    their own images, then their gradients are averaged; the difference is the chance share of low-pass images.)

    What `masks` gives is what the corruption draws: `[B, H, W]` bool over the centred spectrum, true where a frequency
    stays; nothing for super-resolution; kernel taps `[B, K]` for deblurring; the noise `[B, H, W, C]`, in units of
    pixels in [0, 1], for denoising. See `masking/frequency.py` and `masking/degradation.py`.

    Left out: the official code's optional transformer decoder before the head (off in every released config), its
    other blur kernels and noises (unused there).
    """

    encoder_needs = "whole_images"

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 at 224 as released."""
        model = vit.default_config()
        model.update(pool="mean", position="learned", qkv_bias="qv", init_scheme="one_sigma_normal")
        return ConfigDict(
            dict(
                model=model,
                corruption="frequency",  # or a restoration: "super_resolution", "deblur", "denoise"
                frequency=dict(
                    radius=16.0,  # of the disc of low frequencies, in bins
                    outer_radius=optional(float),  # low-pass masks also keep what lies beyond; None: they do not
                    low_pass_probability=0.5,  # of an image; the rest is high-pass. The official sample_ratio
                ),
                super_resolution=dict(factor=8),
                deblur=dict(
                    sigma=5.0,  # pixels
                    kernel_sizes=(7, 9, 11, 13, 15, 17, 19, 21),  # drawn from for each image
                ),
                denoise=dict(sigma=75.0),  # of 255
                spectrum=dict(
                    compare="removed",  # which frequencies: the "removed" or "all" (as every restoration does)
                    gamma=1.0,  # exponent of the distance of two complex numbers
                    focal_alpha=optional(float),  # and the rest: see targets/spectrum.py; the paper uses none of it
                    focal_log=False,
                    focal_over_batch=False,
                    tiles=1,
                    average_batch=False,
                ),
            )
        )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.encoder = backbone.build(config)
        self.head = pixel_head.build(config, self.encoder)
        self.mean, self.std = (constants[None, None, None] for constants in normalization(config))
        self.corruption = build_corruption(config)
        options = config.spectrum.to_dict()
        self.compare = options.pop("compare")
        self.frequency_loss = FrequencyLoss(**options)
        self._check_spectrum()

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "head"}}`, and `{"state": {"encoder"}}` for an encoder with BatchNorm."""
        encoder_rng, head_rng = jax.random.split(rng)
        images = jnp.zeros(batch["image"].shape, jnp.float32)[:1]
        latent, encoder = self.encoder.init_with_output(encoder_rng, images)
        if self.config.model.backbone == "vit":
            encoder = {"params": rescale_residual_kernels(encoder["params"])}
        return statistics.collect({"encoder": encoder, "head": self.head.init(head_rng, self._tokens(latent))})

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> jax.Array | None:
        """What is random about the corruption of each image (see the class)."""
        del variables, clock
        return self.corruption.draw(rng, batch["image"].shape[0])

    def loss(self, variables: Variables, batch: Batch, masks: jax.Array | None, rng: jax.Array, clock: Clock):
        """Mean distance of spectra; `aux["terms"]["frequency"]` is the same number.

        `aux["prediction"]` and `aux["target"]` are images `[B, H, W, C]` in normalised units, `aux["input"]` is what
        the encoder saw.
        """
        del clock
        target = batch["image"].astype(jnp.float32)
        corrupted = self.corrupt(target, masks)
        latent, prediction, state = self._forward(variables, corrupted, rng, train=True)
        loss = self.frequency_loss(prediction, target, self._compared(masks))
        return loss, {
            **({"state": {**variables["state"], **state}} if state else {}),
            "terms": {"frequency": loss},
            "prediction": prediction,
            "target": target,
            "latent": latent,
            "input": corrupted,
        }

    def corrupt(self, images: jax.Array, masks: jax.Array | None) -> jax.Array:
        """The corrupted images `[B, H, W, C]`; both they and `images` are normalised."""
        pixels = images * self.std + self.mean
        return (self.corruption(pixels, masks) - self.mean) / self.std

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images; `pooled` is the mean over patches after the final norm."""
        return self.encoder.split(statistics.apply(self.encoder, variables, "encoder", images)[0])

    def reconstruct(self, variables: Variables, batch: Batch, masks: jax.Array | None) -> dict[str, jax.Array]:
        """As `masked` the corrupted image, as `reconstruction` the prediction.

        Where only removed frequencies are compared, the others come from the image: the loss says nothing of them.
        """
        images = batch["image"].astype(jnp.float32)
        corrupted = self.corrupt(images, masks)
        _, prediction, _ = self._forward(variables, corrupted, None)
        compared = self._compared(masks)
        if compared is not None:
            prediction = images + keep_frequencies(prediction - images, compared)
        return {"original": images, "masked": corrupted, "reconstruction": prediction}

    def _forward(self, variables: Variables, images: jax.Array, rng: jax.Array | None, train: bool = False):
        latent, state = statistics.apply(self.encoder, variables, "encoder", images, train=train, **drop_path_rngs(rng))
        head = {"params": variables["params"]["head"]}
        patches = self.head.apply(head, self._tokens(latent)).astype(jnp.float32)
        return latent, unpatchify(patches, self.encoder.patch_size, self.encoder.grid), state

    def _tokens(self, latent: jax.Array) -> jax.Array:
        """`[B, N, D]`, one token per patch, of an encoder's output `[B, (1 +) N, D]`."""
        return latent[:, int(self.encoder.class_token) :]

    def _compared(self, masks: jax.Array | None) -> jax.Array | None:
        if self.config.corruption != "frequency" or self.compare == "all":
            return None
        return self.corruption.removed(masks)

    def _check_spectrum(self) -> None:
        if self.compare not in ("removed", "all"):
            raise ConfigError(f"spectrum.compare is {self.compare!r}; choose 'removed' or 'all'.")
        selects = self.config.corruption == "frequency" and self.compare == "removed"
        if selects and not self.frequency_loss.can_select:
            raise ConfigError(
                "spectrum.tiles and spectrum.average_batch leave no single frequencies of single images to compare; "
                "set spectrum.compare='all'."
            )
        if any(size % self.frequency_loss.tiles for size in self.encoder.image_size):
            raise ConfigError(
                f"spectrum.tiles {self.frequency_loss.tiles} does not divide image_size {self.config.image_size}."
            )


def build_corruption(config: ConfigDict) -> FrequencyFilter | Downsampling | GaussianBlur | GaussianNoise:
    """The corruption that `config.corruption` names; raises ConfigError for an unknown one or an impossible setting."""
    size = as_pair(config.image_size)
    if config.corruption == "frequency":
        return FrequencyFilter(size, **config.frequency)
    if config.corruption == "super_resolution":
        return Downsampling(size, config.super_resolution.factor)
    if config.corruption == "deblur":
        return GaussianBlur(size, config.deblur.sigma, tuple(config.deblur.kernel_sizes))
    if config.corruption == "denoise":
        return GaussianNoise((*size, config.channels), config.denoise.sigma)
    raise ConfigError(f"corruption is {config.corruption!r}; choose one of {', '.join(CORRUPTIONS)}.")
