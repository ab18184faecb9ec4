"""Cross-view completion: a masked autoencoder whose decoder also sees another view."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mim_jax.contract import Batch, Variables
from mim_jax.layers.block import drop_path_rngs
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models.masked_autoencoder import MaskedAutoencoder


class CrossAutoencoder(MaskedAutoencoder):
    """Reconstructs the hidden patches of `image` from its visible ones and all of `view2`, by one encoder for both.

    Both encoder passes are trained; `view2` is never a target. The pass over `view2`, of which no patch is dropped, is
    most of the cost.
    """

    def batch_spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        """`image`, which is masked, and `view2`, of the same shape."""
        spec = super().batch_spec(batch_size)
        return {**spec, "view2": spec["image"]}

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "decoder"}}`."""
        encoder_rng, decoder_rng = jax.random.split(rng)
        images = jnp.zeros(batch["image"].shape, jnp.float32)[:1]
        latent, encoder = self.encoder.init_with_output(encoder_rng, images)
        decoder = self.decoder.init(decoder_rng, latent, latent, None)
        return {"params": {"encoder": encoder["params"], "decoder": decoder["params"]}}

    def _predict(self, variables: Variables, batch: Batch, masks: TokenMask, rng: jax.Array | None):
        """The latent of the visible patches and the decoder's output for all; nothing is dropped without `rng`."""
        params, deterministic = variables["params"], rng is None
        rngs = [None] * 3 if deterministic else list(jax.random.split(rng, 3))

        def encode(images: jax.Array, rng: jax.Array | None, ids_keep: jax.Array | None = None) -> jax.Array:
            return self.encoder.apply(
                {"params": params["encoder"]},
                images,
                ids_keep=ids_keep,
                **drop_path_rngs(rng),
            )

        latent = encode(batch["image"], rngs[0], masks.ids_keep)
        prediction = self.decoder.apply(
            {"params": params["decoder"]},
            latent,
            encode(batch["view2"], rngs[1]),
            masks,
            deterministic=deterministic,
            rngs=None if deterministic else {"dropout": rngs[2]},
        )
        return latent, prediction
