"""HPM: "Hard Patches Mining for Masked Image Modeling", Wang et al., CVPR 2023, arXiv 2304.05919."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.errors import ConfigError
from mim_jax.masking.hard import hard_mask
from mim_jax.masking.token_mask import TokenMask, take_tokens
from mim_jax.models.ema import copy_tree, linear_momentum, move_teacher
from mim_jax.models.loss_predictor import LossPredictingDecoder
from mim_jax.models.masked_autoencoder import MaskedAutoencoder
from mim_jax.targets.pixels import pixel_target
from mim_jax.targets.ranking import absolute_loss, relative_loss

_OBJECTIVES = {"relative": relative_loss, "absolute": absolute_loss}


class HPM(MaskedAutoencoder):
    """A masked autoencoder whose EMA copy says where its images are hard to reconstruct, and those patches are hidden.

    A second decoder predicts the reconstruction error of every patch, by its rank among the hidden ones. The teacher
    sees the intact image, so that beside the student's step there is a forward pass of the whole sequence through the
    encoder and that second decoder. The share of hidden patches it chooses grows over the epochs ("easy to hard").

    The official code also offers features as targets and a second masking of visible tokens; neither is in a released
    script, nor here.
    """

    decoder_kind = LossPredictingDecoder

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 as released: raw pixels, relative objective."""
        config = super().default_config()
        config.norm_pix_loss = False
        config.loss_objective = "relative"  # of the loss predictor: "relative" (pairs) or "absolute" (values)
        config.hard_share = 0.5  # of the hidden patches, chosen by the teacher in the last epoch
        # The momentum rises linearly over the first epochs, however long the run is, and then stays.
        config.ema = ConfigDict(dict(start=0.999, end=0.9999, epochs=100))
        return config

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        if config.loss_objective not in _OBJECTIVES:
            raise ConfigError(f"loss_objective is {config.loss_objective!r}; choose one of {', '.join(_OBJECTIVES)}.")
        if not 0.0 <= config.hard_share <= 1.0:
            raise ConfigError(f"hard_share is {config.hard_share}; it must lie in [0, 1].")
        if config.ema.epochs < 1:
            raise ConfigError(f"ema.epochs is {config.ema.epochs}; the momentum needs at least one epoch to rise.")
        self.num_hidden = self.encoder.num_patches - self.num_keep

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "decoder"}, "teacher": {"encoder", "decoder"}}`; the teacher starts as a copy."""
        params = super().init(rng, batch)["params"]
        return {"params": params, "teacher": copy_tree(params)}

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> TokenMask:
        """The patches that the teacher scores highest, and random ones up to `mask_ratio`."""
        return hard_mask(rng, self.scores(variables, batch["image"]), self.num_hard(clock), self.num_keep)

    def scores(self, variables: Variables, images: jax.Array) -> jax.Array:
        """How hard the teacher thinks each patch is, `[B, N]` float32, from the intact images."""
        teacher = variables["teacher"]
        latent = self.encoder.apply({"params": teacher["encoder"]}, images)
        return self.decoder.apply({"params": teacher["decoder"]}, latent, None)[1]

    def num_hard(self, clock: Clock) -> jax.Array:
        """Patches the teacher chooses, int32 scalar: `floor(hidden * hard_share * (e + 1) / E)` in epoch e of E.

        A clock that stands at 0 does not say how many epochs there will be; nothing is chosen in that step. With
        ViT-B's 147 hidden patches that is right for runs of 74 epochs and more.
        """
        progress, epoch = (jnp.asarray(x, jnp.float32) for x in (clock.progress, clock.epoch))
        started = progress > 0.0
        # Durations are whole steps, which makes the quotient not quite whole.
        epochs = jnp.ceil(epoch / jnp.where(started, progress, 1.0) - 0.01)
        current = jnp.minimum(jnp.floor(epoch) + 1.0, epochs)
        count = self.num_hidden * self.config.hard_share * current / jnp.maximum(epochs, 1.0)
        return jnp.where(started, count, 0.0).astype(jnp.int32)

    def loss(self, variables: Variables, batch: Batch, masks: TokenMask, rng: jax.Array, clock: Clock):
        """Squared error of the hidden patches, plus the loss predictor's objective on these errors, weight 1.

        The errors are constants to the loss predictor, but its gradient goes on into the encoder: deliberately, the
        paper finds that this alone helps. `aux["score"]` are its outputs, `[B, N]`.
        """
        del clock
        latent, (prediction, score) = self._outputs(variables, batch["image"], masks, rng)
        target = pixel_target(batch["image"], self.encoder.patch_size, self.config.norm_pix_loss)
        error = jnp.square(prediction - target).mean(axis=-1)
        error, hidden_score = (take_tokens(x[:, :, None], masks.ids_hidden)[:, :, 0] for x in (error, score))
        reconstruction = error.mean()
        loss_prediction = _OBJECTIVES[self.config.loss_objective](hidden_score, error)
        return reconstruction + loss_prediction, {
            "terms": {"reconstruction": reconstruction, "loss_prediction": loss_prediction},
            "prediction": prediction,
            "target": target,
            "latent": latent,
            "score": score,
        }

    def update(self, variables: Variables, clock: Clock) -> Variables:
        """`teacher <- m * teacher + (1 - m) * params`, with the `m` of the epoch.

        All of `params` is followed, as official checkpoints have it; the teacher's pixel decoder is never run.
        """
        ema = self.config.ema
        progress = jnp.minimum(jnp.floor(jnp.asarray(clock.epoch, jnp.float32)) / ema.epochs, 1.0)
        return move_teacher(variables, linear_momentum(progress, ema.start, ema.end))

    def _forward(self, variables: Variables, images: jax.Array, masks: TokenMask, rng: jax.Array | None):
        latent, (prediction, _) = self._outputs(variables, images, masks, rng)
        return latent, prediction

    def _outputs(self, variables: Variables, images: jax.Array, masks: TokenMask, rng: jax.Array | None):
        """The latent, and the decoder's predictions and scores."""
        return super()._forward(variables, images, masks, rng)
