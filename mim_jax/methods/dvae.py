"""dVAE: the visual tokenizer of "Zero-Shot Text-to-Image Generation", Ramesh et al., ICML 2021, arXiv 2102.12092."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Masks, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.layers.compute import Compute
from mim_jax.layers.patches import as_pair
from mim_jax.models import dvae
from mim_jax.normalization import normalization


class DVAE(Objective):
    """Learns the visual tokens that other methods predict; it hides nothing.

    An encoder gives every place of a coarse grid logits over tokens, a decoder rebuilds the image from one token for
    each place. In training the choice is relaxed to a softmax with Gumbel noise, whose temperature falls. The loss is
    the negative logarithm of a logit-Laplace density of the pixels, mean over pixels and channels, and the divergence
    of the chosen distribution from the uniform one, in the same unit, times `kl_weight`. Methods that use the tokens
    take the likeliest one (`tokenizer.weights=<workdir>`).

    The paper's schedules are counted in steps of a run of 3 million; here they are shares of the run.
    """

    encoder_needs = None

    @classmethod
    def default_config(cls) -> ConfigDict:
        """DALL-E's network."""
        return ConfigDict(
            dict(
                model=dict(backbone="dvae", **dvae.network_config(), code_width=128),
                temperature_start=1.0,
                temperature_end=1 / 16,
                temperature_share=0.05,  # of the run, after which the temperature, on half a cosine, is at its end
                kl_weight=6.6,
                kl_share=0.002,  # of the run, in which its weight rises from 0
                # Of the density, at least this. None, as in the paper, does for photos; where many pixels are exactly
                # alike (black borders), the density would grow without end there, and nothing else count.
                min_log_scale=optional(float),
            )
        )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        model, compute = config.model, Compute.from_config(config.compute)
        dvae.check_network(model, "model")
        if model.code_width < 1:
            raise ConfigError(f"model.code_width is {model.code_width}; it must be at least 1.")
        for key in ("temperature_start", "temperature_end"):
            if config[key] <= 0.0:
                raise ConfigError(f"{key} is {config[key]}; it must be positive.")
        self.encoder = dvae.build_encoder(model, compute)
        self.decoder = dvae.Decoder(model.width, model.groups, model.depth, model.code_width, config.channels, compute)
        stride, size = self.encoder.stride, as_pair(config.image_size)
        if size[0] % stride or size[1] % stride:
            raise ConfigError(
                f"image_size {size[0]}x{size[1]} is not divisible by the {stride} pixels of a token; change it or "
                "model.groups."
            )
        self._mean, self._std = normalization(config)

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "decoder"}}`."""
        encoder_rng, decoder_rng = jax.random.split(rng)
        images = jnp.zeros(batch["image"].shape, jnp.float32)[:1]
        (_, logits), encoder = self.encoder.init_with_output(encoder_rng, images)
        return {"params": {"encoder": encoder["params"], "decoder": self.decoder.init(decoder_rng, logits)["params"]}}

    def loss(self, variables: Variables, batch: Batch, masks: Masks, rng: jax.Array, clock: Clock):
        """`reconstruction + kl_weight(progress) * kl`; without `rng` there is no Gumbel noise.

        `aux["prediction"]` are the decoder's outputs `[B, H, W, 2 C]`, `aux["target"]` the squeezed pixels and
        `aux["latent"]` the logits `[B, h, w, codes]`. `aux["metrics"]["perplexity"]`: how many tokens a batch uses,
        as the exponential of the entropy of the likeliest ones' frequencies.
        """
        del masks
        params = variables["params"]
        pixels = dvae.squeeze_pixels(self._pixels(batch["image"]))
        features, logits = self.encoder.apply({"params": params["encoder"]}, pixels)
        codes = relaxed_choice(rng, logits, self.temperature(clock.progress))
        prediction = self.decoder.apply({"params": params["decoder"]}, codes)
        location, log_scale = jnp.split(prediction, 2, axis=-1)
        if self.config.min_log_scale is not None:
            log_scale = jnp.maximum(log_scale, self.config.min_log_scale)
        reconstruction = logit_laplace_loss(pixels, location, log_scale).mean()
        log_q = jax.nn.log_softmax(logits, axis=-1)
        divergence = (jnp.exp(log_q) * log_q).sum(axis=-1).mean() + jnp.log(float(self.encoder.num_codes))
        kl = divergence / (self.encoder.stride**2 * pixels.shape[-1])  # for each pixel and channel, like the density
        loss = reconstruction + self.kl_weight(clock.progress) * kl
        return loss, {
            "terms": {"reconstruction": reconstruction, "kl": kl},
            "metrics": {"perplexity": _perplexity(logits)},
            "prediction": prediction,
            "target": pixels,
            "latent": logits,
            "pooled": features.astype(jnp.float32).mean(axis=(1, 2)),
        }

    def temperature(self, progress: jax.Array | float) -> jax.Array:
        """Of the relaxed choice: from `temperature_start` to `temperature_end` along half a cosine, then constant."""
        start, end = self.config.temperature_start, self.config.temperature_end
        share = _ramp(progress, self.config.temperature_share)
        return end + 0.5 * (start - end) * (1.0 + jnp.cos(jnp.pi * share))

    def kl_weight(self, progress: jax.Array | float) -> jax.Array:
        """From 0 to `kl_weight` in a straight line, then constant."""
        return self.config.kl_weight * _ramp(progress, self.config.kl_share)

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """The last features before the logits, and their mean; `token_ids [B, N]` int32 are the likeliest tokens."""
        pixels = dvae.squeeze_pixels(self._pixels(images))
        features, logits = self.encoder.apply({"params": variables["params"]["encoder"]}, pixels)
        tokens = features.astype(jnp.float32).reshape(images.shape[0], -1, features.shape[-1])
        ids = logits.argmax(axis=-1).reshape(images.shape[0], -1).astype(jnp.int32)
        return {"tokens": tokens, "pooled": tokens.mean(axis=1), "token_ids": ids}

    def reconstruct(self, variables: Variables, batch: Batch, masks: Masks) -> dict[str, jax.Array]:
        """The image as it is rebuilt from its likeliest tokens; `masked` is the image, of which nothing is hidden."""
        del masks
        images, params = batch["image"].astype(jnp.float32), variables["params"]
        _, logits = self.encoder.apply({"params": params["encoder"]}, dvae.squeeze_pixels(self._pixels(images)))
        codes = jax.nn.one_hot(logits.argmax(axis=-1), self.encoder.num_codes, dtype=jnp.float32)
        location, _ = jnp.split(self.decoder.apply({"params": params["decoder"]}, codes), 2, axis=-1)
        pixels = dvae.unsqueeze_pixels(jax.nn.sigmoid(location))
        rebuilt = (pixels - self._mean[None, None, None]) / self._std[None, None, None]
        return {"original": images, "masked": images, "reconstruction": rebuilt}

    def _pixels(self, images: jax.Array) -> jax.Array:
        """Pixels in [0, 1] of a batch's normalised images."""
        images = images.astype(jnp.float32) * self._std[None, None, None] + self._mean[None, None, None]
        return jnp.clip(images, 0.0, 1.0)


def logit_laplace_loss(pixels: jax.Array, location: jax.Array, log_scale: jax.Array) -> jax.Array:
    """`-log p(pixels)` of values in (0, 1) whose logits have a Laplace density (Ramesh et al. 2021, appendix A.3)."""
    distance = jnp.abs(jnp.log(pixels / (1.0 - pixels)) - location)
    return jnp.log(2.0 * pixels * (1.0 - pixels)) + log_scale + distance * jnp.exp(-log_scale)


def _ramp(progress: jax.Array | float, share: float) -> jax.Array:
    """From 0 to 1 in the first `share` of the run."""
    return jnp.clip(jnp.asarray(progress, jnp.float32) / max(share, 1e-9), 0.0, 1.0)


def _perplexity(logits: jax.Array) -> jax.Array:
    num_codes = logits.shape[-1]
    frequency = jax.nn.one_hot(logits.argmax(axis=-1), num_codes, dtype=jnp.float32).reshape(-1, num_codes).mean(axis=0)
    return jnp.exp(-(frequency * jnp.log(jnp.maximum(frequency, 1e-12))).sum())


def relaxed_choice(rng: jax.Array | None, logits: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Weights `[..., K]` that at low temperatures are one choice drawn from `softmax(logits)`; without rng no draw.

    The Gumbel-softmax (Jang et al. 2017; Maddison et al. 2017).
    """
    noise = jnp.zeros((), jnp.float32) if rng is None else jax.random.gumbel(rng, logits.shape, jnp.float32)
    return jax.nn.softmax((logits + noise) / temperature, axis=-1)
