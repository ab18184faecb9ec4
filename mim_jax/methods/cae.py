"""CAE: "Context Autoencoder for Self-Supervised Representation Learning".

Chen et al., IJCV 2023, arXiv 2202.03026; official code: Atten4Vis/CAE.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Variables
from mim_jax.errors import DataError
from mim_jax.layers.block import drop_path_rngs
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models import code_decoder, tokenizers
from mim_jax.models.context_autoencoder import ContextAutoencoder


class CAE(ContextAutoencoder):
    """Predicts the latents of hidden patches from those of visible ones, and from the prediction alone visual tokens.

    The encoder sees visible patches only. A regressor predicts from its output, by cross-attention, what the very same
    encoder says of the hidden patches; a decoder turns these predictions, never the visible tokens, into logits of
    discrete tokens. The loss is the cross entropy of those and twice the squared error of the latents, whose target has
    no gradient.

    The target is the encoder's own output for class token and hidden patches, under current weights and with drop path
    of its own (the official "alignment encoder" shares its parameters). So per image the encoder passes over half the
    patches with gradients and over the other half without. The tokenizer, a frozen convolutional network, costs more
    than the forward passes over both (DALL-E's: 26 GMAC an image, against 17 of ViT-B's).

    `batch["token_ids"] [B, N]` int32 in [0, num_codes), where a batch has it, are the targets, and the tokenizer is not
    run.
    `batch["tokenizer_image"]`, normalised like `image`, is what it sees instead of the image resized (see `Tokenizer`).
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 with DALL-E's tokenizer."""
        config = super().default_config()
        config.update(
            decoder=code_decoder.default_config(),
            tokenizer=tokenizers.default_config(),
            align_weight=2.0,
        )
        return config

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.tokenizer = tokenizers.build(config.tokenizer, config, self.encoder.grid)
        self.teachers = {"tokenizer": self.tokenizer}
        self.decoder = code_decoder.build(config, self.regressor, self.tokenizer.num_codes)

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`params`: `encoder`, `projection` (where widths differ), `regressor`, `decoder`; `teacher`: `tokenizer`."""
        rng, decoder_rng, tokenizer_rng = jax.random.split(rng, 3)
        params = super().init(rng, batch)["params"]
        mask = self._any_mask()
        latents = jnp.zeros((*mask.ids_hidden.shape, self.regressor.width), jnp.float32)
        params["decoder"] = self.decoder.init(decoder_rng, latents, mask.ids_hidden)["params"]
        return {"params": params, "teacher": {"tokenizer": self.tokenizer.init(tokenizer_rng)}}

    def teach(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """The `token_ids [B, N]` int32 of all patches."""
        images = batch.get("tokenizer_image", batch["image"])
        return {"token_ids": self.tokenizer(variables["teacher"]["tokenizer"], images)}

    def loss(self, variables: Variables, batch: Batch, masks: TokenMask, rng: jax.Array, clock: Clock):
        """`ce + align_weight * align`: means over all hidden patches, and over all elements of their latents.

        `aux["prediction"]` are the logits `[B, M, codes]` and `aux["target"]` the tokens `[B, M]`, in the order of
        `masks.ids_hidden`; `aux["regressed"]` and `aux["aligned"]` the predicted and true latents `[B, M, R]`.
        """
        del clock
        params, images = variables["params"], batch["image"]
        rngs = (None,) * 4 if rng is None else tuple(jax.random.split(rng, 4))
        latent, visible = self._latents(params, images, masks.ids_keep, rngs[0])
        regressed = self._regress(params, visible, masks, rngs[1])
        aligned = self._aligned(params, images, masks, rngs[2])
        logits = self.decoder.apply(
            {"params": params["decoder"]}, regressed, masks.ids_hidden, **drop_path_rngs(rngs[3])
        )
        target = jnp.take_along_axis(self._token_ids(variables, batch), masks.ids_hidden, axis=1)
        regressed = regressed.astype(jnp.float32)
        ce = optax.losses.softmax_cross_entropy_with_integer_labels(logits, target).mean()
        align = jnp.square(regressed - aligned).mean()
        return ce + self.config.align_weight * align, {
            "terms": {"ce": ce, "align": align},
            "metrics": {"accuracy": (logits.argmax(axis=-1) == target).astype(jnp.float32).mean()},
            "prediction": logits,
            "target": target,
            "latent": latent,
            "regressed": regressed,
            "aligned": aligned,
        }

    def _aligned(self, params: Variables, images: jax.Array, masks: TokenMask, rng: jax.Array | None) -> jax.Array:
        """What the regressor ought to predict, `[B, M, R]` float32: the encoder's latents of the hidden patches."""
        _, latents = self._latents(jax.lax.stop_gradient(params), images, masks.ids_hidden, rng)
        return jax.lax.stop_gradient(latents[:, int(self.encoder.class_token) :].astype(jnp.float32))

    def _token_ids(self, variables: Variables, batch: Batch) -> jax.Array:
        """Visual tokens `[B, N]` int32 of all patches."""
        if "token_ids" in batch:
            shape, expected = batch["token_ids"].shape, (batch["image"].shape[0], self.encoder.num_patches)
            if shape != expected:
                raise DataError(f"The batch's token_ids have shape {shape}; give one for each patch, {expected}.")
            return batch["token_ids"].astype(jnp.int32)
        return self.taught(variables, batch)["token_ids"]
