"""A pixel decoder with a second one beside it that predicts how large the first one's error will be (HPM)."""

from __future__ import annotations

import jax
from flax import linen as nn

from mim_jax.masking.token_mask import TokenMask
from mim_jax.models.pixel_decoder import PixelDecoder


class LossPredictingDecoder(PixelDecoder):
    """Two decoders of one size on the same tokens: projection, mask token and positions are shared.

    The loss predictor's head is as wide as the pixels' and its outputs are averaged, as in the official code: another
    width would change the size of its gradients. Its parameters are `loss_stack`, `loss_norm` and `loss_prediction`.
    """

    @nn.compact
    def __call__(self, latent: jax.Array, mask: TokenMask | None) -> tuple[jax.Array | None, jax.Array]:
        """Maps `latent [B, (1 +) K, D]` to pixels `[B, N, output_dim]` and scores `[B, N]`, both float32 and raster.

        Without a mask the latent is that of the intact image, and no pixels are predicted.
        """
        tokens = self.fill_in(latent, mask)
        score = self.predict(tokens, "loss_").mean(axis=-1)
        return None if mask is None else self.predict(tokens), score
