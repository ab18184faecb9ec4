import colorsys

import numpy as np
import pytest

from mim_jax.data.color import NUM_DRAWS, ColorDistortion, active_key, color_distortion
from mim_jax.data.config import default_config
from mim_jax.data.stateless import Stream, uniforms
from tests.data.make import photo


def jitter(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0) -> ColorDistortion:
    return ColorDistortion((brightness, contrast, saturation, hue), 1.0, False)


def draws(value: float) -> list[float]:
    return [value] * NUM_DRAWS


PICTURE = photo(24, 32)
REST = [0.0] * (NUM_DRAWS - 6)  # what follows the jitter


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
    turned = jitter(hue=0.5)(pixels, [0.0, 0.0, 0.5, 0.5, 0.5, 0.5 + 1 / 6, *REST])  # by a sixth of the circle
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
        jitter(0.4, 0.4, 0.4, 0.1)(PICTURE, [0.0, order, 0.9, 0.1, 0.9, 0.9, *REST]).tobytes()
        for order in (0.0, 0.3, 0.6, 0.99)
    }
    assert len(results) == 4


def test_grey_pictures_keep_their_one_channel():
    grey = PICTURE[:, :, :1]
    result = ColorDistortion((0.4, 0.4, 0.4, 0.1), 1.0, True)(grey, draws(0.2))
    assert result.shape == grey.shape and result.dtype == np.uint8
    np.testing.assert_array_equal(jitter(saturation=1.0, hue=0.5)(grey, draws(0.9)), grey)


def share_of(operation, draw, **more):
    row = draws(0.99)
    first = {"grayscale": 8, "blur": 9, "solarize": 11}[operation]
    row[first] = draw
    row[10] = 1.0  # the radius
    return ColorDistortion(None, 0.0, False, **{operation: 0.5, **more})(PICTURE, row)


@pytest.mark.parametrize("operation", ["grayscale", "blur", "solarize"])
def test_single_operations_come_with_their_probability(operation):
    np.testing.assert_array_equal(share_of(operation, 0.5), PICTURE)
    result = share_of(operation, 0.49)
    if operation == "grayscale":
        assert np.ptp(result, axis=2).max() == 0 and np.ptp(result) > 50
    elif operation == "solarize":
        np.testing.assert_array_equal(result, np.where(PICTURE < 128, PICTURE, 255 - PICTURE))
    else:
        assert abs(result.mean() - PICTURE.mean()) < 1 and result.std() < PICTURE.std()


def test_operations_follow_one_another():
    all_three = ColorDistortion(None, 0.0, False, 1.0, 1.0, 1.0)(PICTURE, draws(0.9))
    result = PICTURE
    for operation in ("grayscale", "blur", "solarize"):
        result = ColorDistortion(None, 0.0, False, **{operation: 1.0})(result, draws(0.9))
    np.testing.assert_array_equal(all_three, result)


def test_what_came_later_left_earlier_draws_as_they_were():
    """Jitter and three_augment read the first eight numbers of a stream that has since become longer."""
    positions = np.arange(5)
    np.testing.assert_array_equal(
        uniforms(3, Stream.COLOR, positions, NUM_DRAWS)[:, :8], uniforms(3, Stream.COLOR, positions, 8)
    )
    distort = ColorDistortion((0.4, 0.4, 0.2, 0.1), 0.8, True)
    row = uniforms(3, Stream.COLOR, positions, NUM_DRAWS)[0].tolist()
    np.testing.assert_array_equal(distort(PICTURE, row), distort(PICTURE, row[:8] + [0.0] * (NUM_DRAWS - 8)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("color_jitter", (0.4, 0.4, 0.0, 0.0)),
        ("three_augment", True),
        ("grayscale", 0.2),
        ("blur", 0.1),
        ("solarize", 1.0),
    ],
)
def test_any_key_alone_switches_distortion_on(key, value):
    section = default_config()
    assert color_distortion(section) is None and active_key(section) is None
    section[key] = value
    distortion = color_distortion(section)
    assert active_key(section) == key
    assert getattr(distortion, {"color_jitter": "jitter"}.get(key, key)) == value
