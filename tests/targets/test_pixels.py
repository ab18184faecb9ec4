import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.normalization import normalize_pixels
from mim_jax.targets.pixels import masked_mean, pixel_target, raw_pixels


def test_normalised_patches_have_mean_zero_and_unbiased_variance_one():
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)) * 3.0 + 1.0
    target = np.asarray(pixel_target(images, (4, 4), True))
    raw = np.asarray(pixel_target(images, (4, 4), False))
    np.testing.assert_allclose(target.mean(axis=-1), np.zeros((2, 4)), atol=1e-6)
    expected = 1 / (1 + 1e-6 / raw.var(axis=-1, ddof=1))
    np.testing.assert_allclose(target.var(axis=-1, ddof=1), expected, rtol=1e-5)


def test_a_constant_patch_becomes_zeros():
    target = pixel_target(jnp.full((1, 4, 4, 3), 5.0), (4, 4), True)
    np.testing.assert_array_equal(target, np.zeros((1, 1, 48)))


def test_the_target_is_float32_whatever_the_images_are():
    assert pixel_target(jnp.zeros((1, 4, 4, 1), jnp.bfloat16), (2, 2), True).dtype == jnp.float32


def test_masked_mean_is_over_the_whole_batch():
    values = jnp.asarray([[1.0, 2.0], [3.0, 100.0]])
    hidden = jnp.asarray([[True, True], [True, False]])
    assert float(masked_mean(values, hidden)) == 2.0


def test_every_8_bit_pixel_comes_back_from_its_normalised_value():
    pixels = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), (1, 16, 16, 3)).copy()
    mean, std = (np.float32(values) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    normalised = np.empty(pixels.shape, np.float32)
    normalize_pixels(pixels, mean, std, normalised)
    np.testing.assert_array_equal(raw_pixels(jnp.asarray(normalised), mean, std), pixels)
