"""SelectiveMAE: "Harnessing Massive Satellite Imagery with Efficient Masked Image Modeling".

Wang et al., ICCV 2025, arXiv 2406.11933; official code: MiliLab/SelectiveMAE.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.layers.block import drop_path_rngs
from mim_jax.layers.patches import PatchEmbed, patchify
from mim_jax.layers.position import PositionTable
from mim_jax.masking.hog_score import SCORES, patch_scores
from mim_jax.masking.progressive import Curriculum, SelectedTokens, TokenSelector
from mim_jax.masking.token_mask import take_tokens
from mim_jax.models import cross_attention_decoder, vit
from mim_jax.targets.pixels import masked_pictures, patch_statistics


class SelectiveMAE(Objective):
    """Encodes 15 % of an image's patches and predicts another 25 %; the other 60 % are neither seen nor predicted.

    Half of the visible tokens are drawn, the others added by their similarity to those, in a curriculum from near over
    far to random ones (section 3.3, `masking/progressive.py`). Similarity is that of the embedded patches with their
    positions under the current parameters. A decoder of cross-attention alone predicts the pixels; the loss is the
    squared error to each patch normalised by its own statistics.

    Besides the 30 tokens of the encoder a step embeds all patches once for the selection, a twentieth of the encoder's
    forward pass.

    Left out is InfoBatch (Qin et al. 2024), with which the official training skips half of the images whose last loss
    was below the average and weights the other half double: it makes an epoch's stream of images depend on gathered
    losses, where here it is a function of seed and step alone. Without it the expected gradient is the same and each
    epoch has all its steps.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 at 224."""
        return ConfigDict(
            dict(
                model=vit.default_config(),
                decoder=cross_attention_decoder.default_config(),
                mask_ratio=0.85,  # share of patches that are not encoded
                kept_mask_ratio=0.25,  # share of patches that are predicted
                norm_pix_loss=True,
                # What patches are drawn by: "uniform" is what the official code does, whose HOG score is 0 for every
                # patch of any image; "hog" is a guess at what was meant (see masking/hog_score.py).
                score="uniform",
                selection="progressive",  # or "random": the method without its curriculum, which is CrossMAE
                curriculum=dict(
                    far=300,  # first epoch in which the least similar tokens are added, no longer the most similar
                    random=600,  # first epoch in which any are
                    mixing=20,  # the shift to either begins so many epochs before
                    epochs=optional(int, 800),  # length of run these stand for; None: they are epochs of this very run
                ),
            )
        )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.encoder = vit.build(config)
        self.decoder = cross_attention_decoder.build(config, self.encoder)
        self.selector = TokenSelector(
            self.encoder.num_patches,
            config.mask_ratio,
            config.kept_mask_ratio,
            config.selection,
            Curriculum(**config.curriculum),
        )
        if config.score not in SCORES:
            raise ConfigError(f"score is {config.score!r}; choose one of {', '.join(SCORES)}.")

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "decoder"}}`."""
        encoder_rng, decoder_rng = jax.random.split(rng)
        images = jnp.zeros(batch["image"].shape, jnp.float32)[:1]
        ids = jnp.arange(self.selector.num_visible, dtype=jnp.int32)[None]
        latent, encoder = self.encoder.init_with_output(encoder_rng, images, ids_keep=ids)
        decoder = self.decoder.init(decoder_rng, latent, ids)
        return {"params": {"encoder": encoder["params"], "decoder": decoder["params"]}}

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> SelectedTokens:
        """Which patches are seen and which predicted; the curriculum stands where `clock.progress` says.

        With `curriculum.epochs=None` it stands where `clock.epoch` says.
        """
        images = batch["image"]
        scores = patch_scores(images, self.encoder.patch_size, self.config.score)
        tokens = None
        if self.config.selection == "progressive":
            tokens = self.embed(variables, images)
        return self.selector(rng, scores, tokens, self.selector.curriculum.epoch(clock.epoch, clock.progress))

    def embed(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Embedded patches with their positions, as the encoder's first block would receive them: `[B, N, D]`."""
        encoder, params = self.encoder, variables["params"]["encoder"]
        patch_embed = PatchEmbed(encoder.width, encoder.init_scheme, encoder.compute)
        tokens = patch_embed.apply({"params": params["patch_embed"]}, patchify(images, encoder.patch_size))
        positions = PositionTable(encoder.grid, encoder.width, encoder.position, encoder.class_token)
        table, _ = positions.apply({"params": params.get("position", {})})
        return tokens if table is None else tokens + table[None].astype(tokens.dtype)

    def loss(self, variables: Variables, batch: Batch, masks: SelectedTokens, rng: jax.Array, clock: Clock):
        """Mean squared error over the predicted patches; `aux["terms"]["reconstruction"]` is the same number.

        `aux["prediction"]` and `aux["target"]` are `[B, R, p*p*C]`, of those patches alone.
        """
        del clock
        masks = SelectedTokens(*masks)
        latent, prediction = self._forward(variables, batch["image"], masks, rng)
        target = self._patches(batch["image"], masks.predicted)
        if self.config.norm_pix_loss:
            mean, deviation = patch_statistics(target)
            target = (target - mean) / deviation
        loss = jnp.square(prediction - target).mean()
        return loss, {"terms": {"reconstruction": loss}, "prediction": prediction, "target": target, "latent": latent}

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images; `pooled` is the class token after the final norm."""
        return self.encoder.split(self.encoder.apply({"params": variables["params"]["encoder"]}, images))

    def reconstruct(self, variables: Variables, batch: Batch, masks: SelectedTokens) -> dict[str, jax.Array]:
        """Predicted patches from the decoder, visible ones from the image; those that are neither stay hidden.

        With `norm_pix_loss` a prediction says nothing of a patch's mean and contrast: those of the true patch are used.
        """
        masks = SelectedTokens(*masks)
        _, prediction = self._forward(variables, batch["image"], masks, None)
        if self.config.norm_pix_loss:
            mean, deviation = patch_statistics(self._patches(batch["image"], masks.predicted))
            prediction = prediction * deviation + mean
        rows = jnp.arange(prediction.shape[0])[:, None]
        shape = (prediction.shape[0], self.encoder.num_patches)
        everywhere = jnp.zeros((*shape, prediction.shape[-1]), jnp.float32).at[rows, masks.predicted].set(prediction)
        hidden = jnp.ones(shape, bool).at[rows, masks.visible].set(False)
        return masked_pictures(batch["image"], everywhere, hidden, self.encoder.patch_size)

    def _patches(self, images: jax.Array, ids: jax.Array) -> jax.Array:
        return take_tokens(patchify(images.astype(jnp.float32), self.encoder.patch_size), ids)

    def _forward(self, variables: Variables, images: jax.Array, masks: SelectedTokens, rng: jax.Array | None):
        params = variables["params"]
        latent = self.encoder.apply(
            {"params": params["encoder"]},
            images,
            ids_keep=masks.visible,
            **drop_path_rngs(rng),
        )
        return latent, self.decoder.apply({"params": params["decoder"]}, latent, masks.predicted)
