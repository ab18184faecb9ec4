"""Crops are torchvision's."""

import math

import numpy as np
import pytest

from mim_jax.data.geometry import CROP_DRAWS, View, center_crop, random_resized_crop, random_window, whole

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def test_a_crop_follows_the_formula():
    draws = [0.5, 0.25, 0.5, 0.75] + [0.0] * (CROP_DRAWS - 4)
    area = 300 * 400 * 0.6
    aspect = math.exp(0.75 * math.log(3 / 4) + 0.25 * math.log(4 / 3))
    width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    top, left = int(0.5 * (300 - height + 1)), int(0.75 * (400 - width + 1))
    view = random_resized_crop(300, 400, draws, SCALE, RATIO)
    assert view.region == (top, left, top + height, left + width)
    assert view.box == tuple(map(float, view.region))


def test_a_try_that_does_not_fit_is_repeated():
    too_large = [1.0 - 2**-53, 0.0, 0.0, 0.0]  # the whole area in portrait format
    fits = [0.1, 0.5, 0.0, 0.0]
    rest = [0.0] * (CROP_DRAWS - 8)
    assert random_resized_crop(100, 100, too_large + fits + rest, SCALE, RATIO) == random_resized_crop(
        100, 100, fits + too_large + rest, SCALE, RATIO
    )


def test_crops_cover_the_scales_and_places_they_should():
    rng = np.random.default_rng(0)
    regions = [random_resized_crop(200, 300, rng.random(CROP_DRAWS).tolist(), SCALE, RATIO).region for _ in range(2000)]
    tops, lefts, bottoms, rights = np.array(regions).T
    assert tops.min() == 0 and lefts.min() == 0 and bottoms.max() == 200 and rights.max() == 300
    shares = (bottoms - tops) * (rights - lefts) / (200 * 300)
    assert 0.19 < shares.min() < 0.22 and shares.max() > 0.85
    aspects = (rights - lefts) / (bottoms - tops)
    assert aspects.min() > 0.73 and aspects.max() < 1.36


@pytest.mark.parametrize(
    ("size", "region"),
    [
        ((10, 400), (0, 193, 10, 206)),  # too wide for any try: 4:3 of the height, centred
        ((400, 10), (193, 0, 206, 10)),  # too tall: 3:4
        ((1, 1000), (0, 499, 1, 500)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_extreme_shapes_fall_back_to_the_centre(size, region):
    draws = [0.9] * CROP_DRAWS
    assert random_resized_crop(*size, draws, (0.9, 1.0), RATIO).region == region


def test_center_crop_of_a_landscape_photo():
    view = center_crop(375, 500, (224, 224), 256)
    # torchvision: resize to 256 x int(256 * 500 / 375) = 341, then crop at round(16), round(58.5).
    step_y, step_x = 375 / 256, 500 / 341
    np.testing.assert_allclose(view.box, (16 * step_y, 58 * step_x, 240 * step_y, 282 * step_x), rtol=1e-12)
    assert view.region == (0, 0, 375, 500)


def test_center_crop_for_a_wide_input():
    view = center_crop(100, 100, (16, 32), 16)
    np.testing.assert_allclose(view.box, (25.0, 0.0, 75.0, 100.0), atol=1e-9)


def test_center_crop_stays_inside_any_image():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 500, (200, 2)).tolist():
        top, left, bottom, right = center_crop(height, width, (224, 192), 256).box
        assert 0 <= top < bottom <= height and 0 <= left < right <= width


def test_whole_is_whole():
    assert whole(2, 3) == View((0.0, 0.0, 2.0, 3.0), (0, 0, 2, 3))


class TestRandomWindow:
    """torchvision's Resize, then RandomCrop with reflected padding."""

    @staticmethod
    def pictures(draws, padding):
        """What is shown of a photograph, by us and by Pillow and NumPy step by step."""
        from PIL import Image

        from mim_jax.data.resize import resize_batch, resize_image
        from tests.data.make import photo

        view = random_window(120, 160, draws, (56, 56), 64, padding)
        ours = resize_image(photo(), view, (56, 56), "bicubic")
        batched = resize_batch(photo()[None], [view], (56, 56), "bicubic")[0]
        assert np.abs(ours.astype(int) - batched).max() <= 1
        resized = np.asarray(Image.fromarray(photo()).resize((85, 64), Image.Resampling.BICUBIC))
        padded = np.pad(resized, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
        top, left = (int(u * (n + 2 * padding - 56 + 1)) for u, n in zip(draws, (64, 85), strict=True))
        return ours.astype(int), padded[top : top + 56, left : left + 56]

    @pytest.mark.parametrize("padding", [0, 4])
    @pytest.mark.parametrize("draws", [(0.0, 0.0), (0.5, 0.3), (0.99, 0.99), (0.02, 0.999)])
    def test_it_is_what_resizing_padding_and_cutting_shows(self, draws, padding):
        ours, expected = self.pictures(draws, padding)
        assert np.abs(ours - expected).max() <= 1

    def test_every_offset_is_reached(self):
        rng = np.random.default_rng(0)
        views = [random_window(20, 20, rng.random(2).tolist(), (20, 20), 20, 2) for _ in range(300)]
        assert {view.shift for view in views} == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
        assert {view.box for view in views} == {(0.0, 0.0, 20.0, 20.0)}
