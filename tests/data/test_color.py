import colorsys

import numpy as np
import pytest

from mim_jax.data.color import NUM_DRAWS, ColorDistortion
from mim_jax.data.stateless import Stream, uniforms
from tests.data.make import photo


def jitter(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0) -> ColorDistortion:
    return ColorDistortion((brightness, contrast, saturation, hue), 1.0, False)


def draws(value: float) -> list[float]:
    return [value] * NUM_DRAWS


PICTURE = photo(24, 32)


def test_brightness_and_contrast_are_the_factors_asked_for():
    dark = jitter(brightness=0.5)(PICTURE, draws(0.0))
    np.testing.assert_allclose(dark, 0.5 * PICTURE, atol=1.0)
    flat = jitter(contrast=1.0)(PICTURE, draws(0.0))
    assert np.ptp(flat) == 0 and abs(flat[0, 0, 0] - np.dot(PICTURE, [0.299, 0.587, 0.114]).mean()) < 1.5
    for kind in ("brightness", "contrast", "saturation"):
        np.testing.assert_array_equal(jitter(**{kind: 0.4})(PICTURE, draws(0.5)), PICTURE)


def test_saturation_goes_to_grey():
    grey = jitter(saturation=1.0)(PICTURE, draws(0.0))
    assert np.ptp(grey, axis=2).max() == 0 and np.ptp(grey) > 50


def test_hue_is_turned():
    pixels = np.full((4, 4, 3), (200, 40, 40), np.uint8)
    turned = jitter(hue=0.5)(pixels, [0.0, 0.0, 0.5, 0.5, 0.5, 0.5 + 1 / 6, 0.0, 0.0])  # by a sixth of the circle
    hue, saturation, value = colorsys.rgb_to_hsv(*(turned[0, 0] / 255))
    assert abs(hue - 1 / 6) < 0.01 and abs(saturation - 0.8) < 0.02 and abs(value - 200 / 255) < 0.01


@pytest.mark.parametrize("operation", ["grey", "solarised", "blurred"])
def test_one_of_three(operation):
    distort = ColorDistortion(None, 0.0, True)
    row = draws(0.0)
    row[6] = {"grey": 0.0, "solarised": 0.4, "blurred": 0.99}[operation]
    row[7] = 1.0
    result = distort(PICTURE, row)
    if operation == "grey":
        assert np.ptp(result, axis=2).max() == 0
    elif operation == "solarised":
        np.testing.assert_array_equal(result, np.where(PICTURE < 128, PICTURE, 255 - PICTURE))
    else:
        assert abs(result.mean() - PICTURE.mean()) < 1 and result.std() < PICTURE.std()
        row[7] = 0.0
        assert np.abs(distort(PICTURE, row).astype(int) - PICTURE).max() <= 2  # a radius of 0.1 pixels


def test_each_of_the_three_comes_a_third_of_the_time_and_jitter_as_often_as_asked():
    grey = np.repeat(PICTURE[:, :, :1], 3, axis=2)
    rows = uniforms(0, Stream.COLOR, np.arange(600), NUM_DRAWS).tolist()
    three = ColorDistortion(None, 0.0, True)
    untouched = sum(np.array_equal(three(grey, row), grey) for row in rows)  # grey stays grey
    assert 160 < untouched < 240
    often = ColorDistortion((0.4, 0.4, 0.2, 0.1), 0.8, False)
    assert 450 < sum((often(PICTURE, row) != PICTURE).any() for row in rows) < 510


def test_the_order_of_the_jitter_is_random():
    results = {
        jitter(0.4, 0.4, 0.4, 0.1)(PICTURE, [0.0, order, 0.9, 0.1, 0.9, 0.9, 0, 0]).tobytes()
        for order in (0.0, 0.3, 0.6, 0.99)
    }
    assert len(results) == 4


def test_grey_pictures_keep_their_one_channel():
    grey = PICTURE[:, :, :1]
    result = ColorDistortion((0.4, 0.4, 0.4, 0.1), 1.0, True)(grey, draws(0.2))
    assert result.shape == grey.shape and result.dtype == np.uint8
    np.testing.assert_array_equal(jitter(saturation=1.0, hue=0.5)(grey, draws(0.9)), grey)
