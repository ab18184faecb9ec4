import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.masking.token_mask import TokenMask
from mim_jax.models.loss_predictor import LossPredictingDecoder
from mim_jax.models.pixel_decoder import PixelDecoder

SIZES = dict(grid=(2, 3), output_dim=12, width=8, depth=1, heads=2)


def test_two_branches_share_the_tokens_and_the_first_is_the_pixel_decoder():
    decoder = LossPredictingDecoder(**SIZES)
    latent = jax.random.normal(jax.random.key(0), (2, 1 + 2, 16))
    mask = TokenMask.from_noise(jax.random.uniform(jax.random.key(1), (2, 6)), 2)
    params = decoder.init(jax.random.key(2), latent, mask)["params"]
    pixels, score = decoder.apply({"params": params}, latent, mask)
    assert score.shape == (2, 6)

    def branch(prefix):
        names = {name: params[name] for name in ("embed", "mask_token")}
        names |= {name: params[f"{prefix}{name}"] for name in ("stack", "norm", "prediction")}
        return PixelDecoder(**SIZES).apply({"params": names}, latent, mask)

    np.testing.assert_allclose(pixels, branch(""), atol=1e-6)
    np.testing.assert_allclose(score, branch("loss_").mean(axis=-1), atol=1e-6)


def test_the_intact_image_is_scored_without_predicting_pixels():
    decoder = LossPredictingDecoder(**SIZES)
    latent = jax.random.normal(jax.random.key(0), (2, 1 + 6, 16))
    nothing = TokenMask.from_bool(jnp.zeros((2, 6), bool))
    params = decoder.init(jax.random.key(2), latent, nothing)
    pixels, score = decoder.apply(params, latent, None)
    assert pixels is None
    np.testing.assert_allclose(score, decoder.apply(params, latent, nothing)[1], atol=1e-6)
