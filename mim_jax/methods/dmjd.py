"""DMJD: "Disjoint Masking with Joint Distillation for Efficient Masked Image Modeling".

Ma et al., IEEE Transactions on Multimedia 2023, arXiv 2301.00230. Official code: mx-mark/DMJD.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.layers.block import drop_path_rngs
from mim_jax.layers.patches import as_pair
from mim_jax.masking.disjoint_cells import NUM_VIEWS, DisjointCellSampler, DisjointViews
from mim_jax.masking.random import tokens_per_cell
from mim_jax.masking.token_mask import TokenMask, first_views_first, take_tokens
from mim_jax.models import backbone, conv_vit, pixel_decoder
from mim_jax.models.token_projector import TokenProjector
from mim_jax.normalization import normalization
from mim_jax.targets.hog import check_hog, hog_dim, hog_target
from mim_jax.targets.pixels import masked_mean, raw_pixels

# Smooth-L1 with beta 2 is half of Huber's loss with delta 2.
_DISTANCES = {"l2": jnp.square, "smooth_l1": lambda x: 0.5 * optax.losses.huber_loss(x, delta=2.0)}
_VISIBLE_ORDERS = ("raster", "kept")


class DMJD(Objective):
    """Two masked views of every image, disjoint in what they show; HOG is predicted at hidden and at visible patches.

    Hidden patches are predicted by MAE's decoder, visible ones from their latents by a projector. No network teaches:
    the "joint distillation" of the released code has the hand-made target in both branches.

    The official backbone is "conv_vit", ConvMAE's. With "vit", a plain ViT that takes the visible patches alone, the
    method is the same; that variant, of which the paper reports results, was not released, so its details are a guess.

    `visible_order`: the released code picks the visible branch's target in "raster" order, while its predictions stand
    in the order in which patches were kept, so that the two belong to different patches. That is how the published
    numbers came about, and the default; "kept" compares each prediction with its own patch.
    """

    encoder_needs = "token_dropping"

    @classmethod
    def default_config(cls) -> ConfigDict:
        """The released ConViT-B with a decoder of 8 blocks."""
        model = conv_vit.default_config()
        model.stages.mlp_ratios = (8.0, 8.0)
        decoder = pixel_decoder.default_config()
        decoder.mlp_ratio = 8.0  # the official code passes the first stage's ratio on to the decoder
        return ConfigDict(
            dict(
                model=model,
                decoder=decoder,  # its width is the visible branch's too
                mask_ratio=0.6,
                mask_patch_size=32,  # pixels of a cell hidden as a whole; that of a patch for the official "rand" masks
                prediction_ratio=1.0,  # share of the image the two views hide together
                hog=dict(cell_size=8, orientations=9),
                mim_loss="l2",  # or "smooth_l1", of beta 2
                visible_loss="smooth_l1",
                visible_weight=1.0,  # theta, which the official command line never passes on
                visible_order="raster",  # or "kept": see the class
            )
        )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        for key in ("mim_loss", "visible_loss"):
            if config[key] not in _DISTANCES:
                raise ConfigError(f"{key} is {config[key]!r}; choose one of {', '.join(_DISTANCES)}.")
        if config.visible_order not in _VISIBLE_ORDERS:
            raise ConfigError(f"visible_order is {config.visible_order!r}; choose one of {', '.join(_VISIBLE_ORDERS)}.")
        self.encoder = backbone.build(config)
        patch_size = self.encoder.patch_size
        check_hog(patch_size, config.hog.cell_size, config.hog.orientations)
        target_dim = hog_dim(patch_size, config.hog.cell_size, config.hog.orientations, config.channels)
        self.decoder = pixel_decoder.build(config, self.encoder).clone(output_dim=target_dim)
        self.projector = TokenProjector(
            config.decoder.width, target_dim, self.encoder.init_scheme, self.encoder.compute
        )
        self.sampler = DisjointCellSampler(
            grid=self.encoder.grid,
            cell=tokens_per_cell(as_pair(config.mask_patch_size), patch_size),
            mask_ratio=config.mask_ratio,
            prediction_ratio=config.prediction_ratio,
        )
        self.pixel_constants = normalization(config)

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "decoder", "projector"}}`."""
        encoder_rng, decoder_rng, projector_rng = jax.random.split(rng, 3)
        images = jnp.zeros(batch["image"].shape, jnp.float32)[:1]
        mask = self.sampler(rng, 1).first
        latent, encoder = self.encoder.init_with_output(encoder_rng, images, ids_keep=mask.ids_keep)
        decoder = self.decoder.init(decoder_rng, latent, mask)
        projector = self.projector.init(projector_rng, latent)
        parts = {"encoder": encoder, "decoder": decoder, "projector": projector}
        return {"params": {name: part["params"] for name, part in parts.items()}}

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> DisjointViews:
        """Two masks for every image, each hiding `mask_ratio` of it and together `prediction_ratio`."""
        del variables, clock
        return self.sampler(rng, batch["image"].shape[0])

    def loss(self, variables: Variables, batch: Batch, masks: DisjointViews, rng: jax.Array, clock: Clock):
        """`mim`, over hidden patches, plus `visible_weight` times `vis`, over visible ones; both means of all views.

        `aux["prediction"]`, `aux["target"]` `[2B, N, D]`, `aux["latent"]` and `aux["visible_prediction"]` `[2B, K, D]`
        have the first views of all images before the second ones.
        """
        del clock
        config, mask = self.config, DisjointViews(*masks).merged()
        latent, prediction, visible = self._forward(variables["params"], batch["image"], mask, rng)
        target = jnp.repeat(self._target(batch["image"]), NUM_VIEWS, axis=0)
        mim = masked_mean(_DISTANCES[config.mim_loss](prediction - target).mean(axis=-1), mask.mask)
        ids = mask.ids_keep if config.visible_order == "kept" else jnp.sort(mask.ids_keep, axis=1)
        vis = _DISTANCES[config.visible_loss](visible - take_tokens(target, ids)).mean()
        aux = dict(prediction=prediction, target=target, latent=latent, visible_prediction=visible)
        return mim + config.visible_weight * vis, {
            "terms": {"mim": mim, "vis": vis},
            **{name: first_views_first(rows, NUM_VIEWS) for name, rows in aux.items()},
        }

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images, with the stages' side outputs; `pooled` is the mean over patches."""
        return self.encoder.split(self.encoder.apply({"params": variables["params"]["encoder"]}, images))

    def _forward(self, params: dict, images: jax.Array, mask: TokenMask, rng: jax.Array):
        """Latent `[2B, K, D]`, prediction for all patches and prediction for the visible ones, image by image."""
        latent = self.encoder.apply(
            {"params": params["encoder"]},
            images,
            ids_keep=mask.ids_keep,
            **drop_path_rngs(rng),
        )
        prediction = self.decoder.apply({"params": params["decoder"]}, latent, mask)
        patches = latent[:, int(self.encoder.class_token) :]
        return latent, prediction, self.projector.apply({"params": params["projector"]}, patches)

    def _target(self, images: jax.Array) -> jax.Array:
        """HOG of the pixels before they were normalised, `[B, N, D]`."""
        hog = self.config.hog
        pixels = raw_pixels(images, *self.pixel_constants)
        return hog_target(pixels, self.encoder.patch_size, hog.cell_size, hog.orientations)
