"""What both versions of the context autoencoder share: encoder, regressor and block masks (Chen et al. 2022)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.layers.block import drop_path_rngs, layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.initializers import find_scheme
from mim_jax.masking.block import block_mask
from mim_jax.masking.token_mask import TokenMask, num_kept
from mim_jax.models import latent_regressor, vit


class LatentProjection(nn.Module):
    """Takes latents to the regressor's width where that is not the encoder's: a dense layer and a norm."""

    width: int
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, latent: jax.Array) -> jax.Array:
        """Maps `[B, K, D]` to `[B, K, width]`."""
        kernel_init = find_scheme(self.init_scheme).kernel
        x = nn.Dense(self.width, dtype=self.compute.jax_dtype, kernel_init=kernel_init, name="dense")(latent)
        return layer_norm(self.compute, "norm")(x)


class ContextAutoencoder(Objective):
    """Encodes the visible patches, and regresses the latents of the hidden ones; what these are for, a method says."""

    #: Whether the regressor's predictions are normalised.
    regressor_norm = True

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 as the official code runs it."""
        model = vit.default_config()
        model.update(position="sincos_rows_first", qkv_bias="qv", drop_path=0.1, init_scheme="xavier_one_sigma")
        model.layer_scale = optional(float, 0.1)
        return ConfigDict(
            dict(
                model=model,
                regressor=latent_regressor.default_config(),
                mask_ratio=0.5,  # of the patches, by blocks; 98 of 196
                min_block=16,  # patches of a block, as long as so many are missing
                min_aspect=0.3,  # of a block: from this to its inverse
            )
        )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        if config.model.relative_bias:
            raise ConfigError("model.relative_bias is True; it needs all patches, but an autoencoder drops some.")
        self.encoder = vit.build(config)
        self.regressor = latent_regressor.build(config, self.encoder, final_norm=self.regressor_norm)
        self.num_keep = num_kept(self.encoder.num_patches, config.mask_ratio)
        self.projection = None
        if self.regressor.width != self.encoder.width:
            self.projection = LatentProjection(self.regressor.width, self.encoder.init_scheme, self.encoder.compute)

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "projection" (where widths differ), "regressor"}}`."""
        encoder_rng, projection_rng, regressor_rng = jax.random.split(rng, 3)
        images = jnp.zeros(batch["image"].shape, jnp.float32)[:1]
        mask = self._any_mask()
        latent, encoder = self.encoder.init_with_output(encoder_rng, images, ids_keep=mask.ids_keep)
        params = {"encoder": encoder["params"]}
        if self.projection is not None:
            params["projection"] = self.projection.init(projection_rng, latent)["params"]
        visible = jnp.zeros((1, self.num_keep, self.regressor.width), jnp.float32)
        params["regressor"] = self.regressor.init(regressor_rng, visible, mask)["params"]
        return {"params": params}

    def masks(self, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock) -> TokenMask:
        """Blocks that hide the same number of patches of each image; by hand: `TokenMask.from_bool`."""
        del variables, clock
        hidden = self.encoder.num_patches - self.num_keep
        blocks = dict(min_block=self.config.min_block, min_aspect=self.config.min_aspect)
        return block_mask(rng, batch["image"].shape[0], self.encoder.grid, hidden, **blocks)

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images; `pooled` is what `model.pool` says, after the final norm."""
        return self.encoder.split(self.encoder.apply({"params": variables["params"]["encoder"]}, images))

    def _any_mask(self) -> TokenMask:
        """Some mask of one image, to find shapes with."""
        order = jnp.arange(self.encoder.num_patches, dtype=jnp.int32)[None]
        return TokenMask.from_order(order, self.num_keep)

    def _latents(self, params: Variables, images: jax.Array, ids: jax.Array, rng: jax.Array | None):
        """The encoder's output for patches `ids [B, K]` alone, and what of it the regressor works with.

        `[B, (1 +) K, D]` and `[B, (1 +) K, R]`; the same where the widths are.
        """
        latent = self.encoder.apply({"params": params["encoder"]}, images, ids_keep=ids, **drop_path_rngs(rng))
        if self.projection is None:
            return latent, latent
        return latent, self.projection.apply({"params": params["projection"]}, latent)

    def _regress(self, params: Variables, visible: jax.Array, masks: TokenMask, rng: jax.Array | None) -> jax.Array:
        """Predicted latents `[B, M, R]` of the hidden patches from the visible ones' `[B, (1 +) V, R]`."""
        visible = visible[:, int(self.encoder.class_token) :]
        return self.regressor.apply({"params": params["regressor"]}, visible, masks, **drop_path_rngs(rng))
