"""SimMIM: "SimMIM: A Simple Framework for Masked Image Modeling", Xie et al., CVPR 2022, arXiv 2111.09886."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.layers.block import drop_path_rngs
from mim_jax.layers.initializers import rescale_residual_kernels
from mim_jax.layers.patches import as_pair, patchify, regroup_patches
from mim_jax.masking.random import check_cells, num_hidden_cells, random_cell_mask, tokens_per_cell
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models import backbone, masked_token_optimization, pixel_head, vit
from mim_jax.models.masked_token_optimization import MaskedTokenOptimization
from mim_jax.targets.pixels import masked_pictures


class SimMIM(Objective):
    """Hidden patches become a learned mask token; the whole sequence is encoded; a linear head predicts raw pixels.

    The loss is the absolute error over hidden pixels (section 3.4). Masks hide cells of `mask_patch_size` pixels. The
    section `mto` switches on masked token optimization (Choi et al. 2024), which is no part of the method.

    A hierarchical encoder embeds finer patches than it returns tokens for. Masks, `prediction` and `target` are then of
    the patches it embeds, to which the pixels predicted from every token are cut.
    """

    encoder_needs = "mask_tokens"

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 at 224 as released: relative positions only, layer scale 0.1, no key bias."""
        model = vit.default_config()
        model.update(
            pool="mean",
            position="none",
            relative_bias=True,
            qkv_bias="qv",
            drop_path=0.1,
            init_scheme="one_sigma_normal",
        )
        model.layer_scale = 0.1
        return ConfigDict(
            dict(model=model, mask_ratio=0.6, mask_patch_size=32, mto=masked_token_optimization.default_config())
        )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.encoder = backbone.build(config, mask_token=True)
        self.head = pixel_head.build(config, self.encoder)
        self.cell = tokens_per_cell(as_pair(config.mask_patch_size), self.encoder.embed_size)
        rows, columns = check_cells(self.encoder.embed_grid, self.cell)
        num_hidden_cells(rows * columns, config.mask_ratio)
        if config.mto.enabled and config.model.backbone != "vit":
            raise ConfigError(
                f"mto.enabled is True, which model.backbone {config.model.backbone!r} does not work with; set it to "
                "False."
            )
        prefix = int(self.encoder.class_token)
        self.mto = MaskedTokenOptimization(config.mto, self.encoder.depth, prefix, "patch_embed", visible_only=False)

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "head"}}`."""
        encoder_rng, head_rng = jax.random.split(rng)
        images = jnp.zeros(batch["image"].shape, jnp.float32)[:1]
        hidden = jnp.zeros((1, math.prod(self.encoder.embed_grid)), bool)
        latent, encoder = self.encoder.init_with_output(encoder_rng, images, hidden=hidden)
        encoder, head = encoder["params"], self.head.init(head_rng, latent)["params"]
        if self.config.model.backbone == "vit":  # which is BEiT's; Swin has an initialisation of its own
            encoder = rescale_residual_kernels(encoder)
        return {"params": {"encoder": encoder, "head": head}}

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> TokenMask:
        """`ceil(cells * mask_ratio)` random cells of each image."""
        del variables, clock
        grid = self.encoder.embed_grid
        return random_cell_mask(rng, batch["image"].shape[0], grid, self.cell, self.config.mask_ratio)

    def loss(self, variables: Variables, batch: Batch, masks: TokenMask, rng: jax.Array, clock: Clock):
        """Mean absolute error over hidden pixels, with the official 1e-5 in the denominator; and MTO's terms if on."""
        latent, prediction, report = self._forward(variables, batch["image"], masks, rng)
        ph, pw = self.encoder.embed_size
        target = patchify(batch["image"].astype(jnp.float32), (ph, pw))
        hidden = masks.mask.astype(jnp.float32)
        error = jnp.abs(target - prediction).sum(axis=-1)
        loss = (error * hidden).sum() / (hidden.sum() * ph * pw + 1e-5) / self.config.channels
        aux = {"terms": {"reconstruction": loss}, "prediction": prediction, "target": target, "latent": latent}
        return self.mto.add(loss, aux, report, clock)

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images; `pooled` is the mean over patches after the final norm."""
        return self.encoder.split(self.encoder.apply({"params": variables["params"]["encoder"]}, images))

    def reconstruct(self, variables: Variables, batch: Batch, masks: TokenMask) -> dict[str, jax.Array]:
        """Hidden patches from the head, visible ones from the image."""
        _, prediction, _ = self._forward(variables, batch["image"], masks, None)
        return masked_pictures(batch["image"], prediction, masks.mask, self.encoder.embed_size)

    def _forward(self, variables: Variables, images: jax.Array, masks: TokenMask, rng: jax.Array | None):
        params = variables["params"]
        latent, report = self.mto.apply(
            self.encoder,
            params["encoder"],
            images,
            hidden_tokens=masks.mask,
            hidden=masks.mask,
            **drop_path_rngs(rng),
        )
        prediction = self.head.apply({"params": params["head"]}, latent[:, int(self.encoder.class_token) :])
        encoder = self.encoder
        prediction = regroup_patches(prediction, encoder.patch_size, encoder.grid, encoder.embed_size)
        return latent, prediction.astype(jnp.float32), report
