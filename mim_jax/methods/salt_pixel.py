"""V-Pixel, the first of SALT's two stages: "Rethinking JEPA: Compute-Efficient Video SSL with Frozen Teachers".

Li et al. 2025, arXiv 2509.24317. The second stage, which learns from the encoder trained here, is `salt.py`. The
authors' code is not public: masks, encoder and predictor are those of V-JEPA's (facebookresearch/jepa), and what the
paper's text leaves open is said where it is decided.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.layers.tubes import as_clips, tubify, untubify
from mim_jax.masking.multiblock3d import ClipMask
from mim_jax.masking.token_mask import take_tokens
from mim_jax.models import tube_predictor
from mim_jax.models.masked_clips import MaskedClips
from mim_jax.targets.tube_pixels import tube_statistics, tube_target


class SALTPixel(MaskedClips):
    """Masked pixel reconstruction under V-JEPA's multi-block masks: context tubes in, pixels of the target tubes out.

    The loss is the squared error, averaged over both kinds of masks. Open in the paper's text and this project's
    reading: pixels are normalised per tube (`norm_pix_loss`), and the decoder has one mask token for each kind of mask
    as V-JEPA's predictor has (`decoder.num_mask_tokens`).
    """

    predictor_name = "decoder"

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 on images, with the decoder used for all sizes."""
        config = super().default_config()
        config.decoder = tube_predictor.default_config()
        config.decoder.update(width=512, depth=8, heads=8)
        config.norm_pix_loss = True
        return config

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        pixels = math.prod(self.encoder.tube) * config.channels
        self.predictor = tube_predictor.build(
            config, "decoder", self.encoder, output_dim=pixels, num_kinds=len(self.samplers)
        )

    def loss(self, variables: Variables, batch: Batch, masks: tuple[ClipMask, ...], rng: jax.Array, clock: Clock):
        """Mean squared error over target tubes, `aux["terms"]["reconstruction"]`; see `MaskedClips._regress`."""
        del clock
        clips = as_clips(batch[self.input_name], 1)
        target = tube_target(clips, self.encoder.tube, self.config.norm_pix_loss)
        return self._regress(variables, clips, target, masks, rng, jnp.square, "reconstruction")

    def reconstruct(self, variables: Variables, batch: Batch, masks: tuple[ClipMask, ...]) -> dict[str, jax.Array]:
        """Pictures of the first kind of masks; the frames of a clip stand side by side, `[B, H, T * W, C]`.

        Target tubes are the decoder's, context ones the clip's; what was cut from both is 0. With `norm_pix_loss` a
        prediction says nothing of a tube's mean and contrast: those of the true tube are used.
        """
        clips, mask, tube = as_clips(batch[self.input_name], 1).astype(jnp.float32), masks[0], self.encoder.tube
        tubes = tubify(clips, tube)
        _, (prediction,) = self._predict(variables, clips, (mask,), None)
        if self.config.norm_pix_loss:
            mean, deviation = tube_statistics(take_tokens(tubes, mask.targets))
            prediction = prediction * deviation + mean
        context = _place(take_tokens(tubes, mask.context), mask.context, mask.context_valid, tubes)
        predicted = _place(prediction, mask.targets, mask.targets_valid, tubes)
        pictures = {"original": tubes, "masked": context, "reconstruction": context + predicted}
        return {name: _side_by_side(untubify(tubes, tube, self.encoder.tube_grid)) for name, tubes in pictures.items()}


def _place(values: jax.Array, ids: jax.Array, valid: jax.Array | None, like: jax.Array) -> jax.Array:
    """`values [B, K, P]` at `ids` where `valid`, and zeros elsewhere, in the shape `[B, N, P]` of `like`."""
    beyond = like.shape[1]
    ids = ids if valid is None else jnp.where(valid, ids, beyond)
    rows = jnp.arange(like.shape[0], dtype=jnp.int32)[:, None]
    return jnp.zeros_like(like).at[rows, ids].set(values, mode="drop")


def _side_by_side(clips: jax.Array) -> jax.Array:
    """`[B, T, H, W, C]` to `[B, H, T * W, C]`."""
    batch, frames, height, width, channels = clips.shape
    return clips.transpose(0, 2, 1, 3, 4).reshape(batch, height, frames * width, channels)
