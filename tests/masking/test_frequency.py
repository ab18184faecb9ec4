import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.masking.frequency import FrequencyFilter, keep_frequencies, low_pass

SIZE = (12, 16)
RADIUS = 3.0


def both_masks():
    low = low_pass(SIZE, RADIUS)
    return jnp.asarray(np.stack([low, ~low]))


@pytest.fixture
def pixels():
    return jax.random.uniform(jax.random.key(0), (2, *SIZE, 3))


def test_the_papers_disc_keeps_793_of_50176_frequencies_and_the_centre():
    low = low_pass((224, 224), 16)
    assert low.sum() == 793
    assert low[112, 112]


def test_an_outer_radius_makes_a_band_stop_filter():
    kept = low_pass((224, 224), 16, 40)
    assert kept[112, 112 + 15] and not kept[112, 112 + 16] and not kept[112, 112 + 39] and kept[112, 112 + 40]
    np.testing.assert_array_equal(low_pass((224, 224), 16, 999), low_pass((224, 224), 16))


def test_a_draw_gives_every_image_the_disc_or_its_complement():
    draw = FrequencyFilter(SIZE, RADIUS).draw(jax.random.key(1), 32)
    low = low_pass(SIZE, RADIUS)
    is_low = np.asarray(draw)[:, SIZE[0] // 2, SIZE[1] // 2]
    np.testing.assert_array_equal(draw, np.where(is_low[:, None, None], low, ~low))
    assert 0 < is_low.sum() < 32


@pytest.mark.parametrize("probability", [0.3, 0.5, 1.0])
def test_the_share_of_low_pass_images(probability):
    draw = FrequencyFilter((4, 4), 2.0, low_pass_probability=probability).draw(jax.random.key(2), 20_000)
    deviation = np.sqrt(probability * (1 - probability) / 20_000)
    assert abs(float(draw[:, 2, 2].mean()) - probability) <= 4 * deviation


def test_removed_frequencies_are_zero_and_the_two_parts_add_up(pixels):
    same = jnp.broadcast_to(pixels[:1], pixels.shape)
    parts = keep_frequencies(same, both_masks())
    spectrum = np.fft.fftshift(np.fft.fft2(parts, axes=(1, 2)), axes=(1, 2))
    removed = ~np.asarray(both_masks())
    assert np.abs(spectrum[removed]).max() < 1e-4 * np.abs(spectrum).max()
    np.testing.assert_allclose(parts.sum(axis=0), pixels[0], atol=1e-5)


def test_the_mask_is_centred(pixels):
    # Only the frequency of one full wave along the columns, and its mirror image, for a bright and a dark half.
    wave = 0.5 + 0.25 * np.cos(2 * np.pi * np.arange(16) / 16)
    images = np.broadcast_to(wave[None, None, :, None], (1, *SIZE, 1)).astype(np.float32)
    kept = np.zeros((1, *SIZE), bool)
    kept[0, 6, [7, 9]] = True
    np.testing.assert_allclose(keep_frequencies(jnp.asarray(images), jnp.asarray(kept)), images - 0.5, atol=1e-6)


def test_of_a_constant_image_the_low_pass_is_the_image_and_the_high_pass_nothing():
    constant = jnp.full((2, *SIZE, 3), 0.4)
    low, high = FrequencyFilter(SIZE, RADIUS)(constant, both_masks())
    np.testing.assert_allclose(low, np.full_like(low, 0.4), atol=1e-6)
    np.testing.assert_allclose(high, np.zeros_like(high), atol=1e-6)


def test_results_are_cut_to_the_range_of_pixels(pixels):
    corrupted = FrequencyFilter(SIZE, RADIUS)(pixels, both_masks())
    np.testing.assert_allclose(corrupted, np.clip(keep_frequencies(pixels, both_masks()), 0, 1))
    # Without their mean, high-pass images lose about half of their values.
    assert 0.3 < float((corrupted[1] == 0.0).mean()) < 0.7


@pytest.mark.parametrize("settings", [dict(radius=0.0), dict(radius=99.0), dict(low_pass_probability=1.5)])
def test_filters_that_cannot_work_are_refused(settings):
    with pytest.raises(ConfigError, match=r"frequency\."):
        FrequencyFilter(SIZE, **{"radius": RADIUS, **settings})
