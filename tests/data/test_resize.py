"""Resizing equals Pillow's."""

import numpy as np
import pytest
from PIL import Image

from mim_jax.data.geometry import View, center_crop, whole
from mim_jax.data.resize import filter_reach, resize_batch, resize_image
from tests.data.make import photo

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def cut(top: int, left: int, bottom: int, right: int) -> View:
    region = (top, left, bottom, right)
    return View(tuple(map(float, region)), region)


def pillow(pixels: np.ndarray, view: View, size: tuple[int, int], interpolation: str) -> np.ndarray:
    top, left, bottom, right = view.region
    image = Image.fromarray(pixels).crop((left, top, right, bottom))
    return np.asarray(image.resize((size[1], size[0]), FILTERS[interpolation]))


@pytest.mark.parametrize("interpolation", FILTERS)
def test_a_photo_is_resized_as_pillow_does(interpolation):
    view = cut(7, 20, 101, 133)
    np.testing.assert_array_equal(
        resize_image(photo(), view, (48, 40), interpolation), pillow(photo(), view, (48, 40), interpolation)
    )


def test_a_centre_crop_equals_resizing_everything_and_cutting():
    resized = Image.fromarray(photo()).resize((int(64 * 160 / 120), 64), Image.Resampling.BICUBIC)
    left = round((resized.width - 56) / 2)
    expected = np.asarray(resized.crop((left, 4, left + 56, 60)))
    found = resize_image(photo(), center_crop(120, 160, (56, 56), 64), (56, 56), "bicubic")
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [(28, 28), (20, 45), (60, 50)])
def test_a_batch_is_resized_as_pillow_does_within_one_level(interpolation, size):
    rng = np.random.default_rng(0)
    images = np.stack([photo()[start : start + 40, start : start + 50] for start in range(70)])
    views = []
    for _ in images:
        top, left = rng.integers(0, 20, 2)
        views.append(cut(int(top), int(left), int(top + rng.integers(5, 21)), int(left + rng.integers(5, 31))))
    found = resize_batch(images, views, size, interpolation)
    expected = np.stack([pillow(image, view, size, interpolation) for image, view in zip(images, views, strict=True)])
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 2 and (difference > 1).mean() < 1e-3  # Pillow rounds twice


def test_a_batch_respects_a_region_larger_than_the_box():
    view = center_crop(40, 50, (24, 24), 28)
    images = photo()[None, :40, :50]
    found = resize_batch(images, [view], (24, 24), "bicubic")[0]
    expected = resize_image(images[0], view, (24, 24), "bicubic")
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_results_do_not_depend_on_the_company():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (150, 28, 28, 1), np.uint8)
    views = [cut(i % 5, i % 7, 28 - i % 3, 28 - i % 11) for i in range(150)]
    together = resize_batch(images, views, (28, 28), "bicubic")
    apart = np.concatenate([resize_batch(images[i : i + 1], views[i : i + 1], (28, 28), "bicubic") for i in range(150)])
    np.testing.assert_array_equal(together, apart)


def test_floats_of_many_channels():
    images = np.random.default_rng(0).random((2, 10, 12, 5)).astype(np.float32)
    found = resize_batch(images, [whole(10, 12)] * 2, (5, 6), "bilinear")
    assert found.dtype == np.float32 and found.shape == (2, 5, 6, 5)
    alone = resize_batch(images[:, :, :, 3:4], [whole(10, 12)] * 2, (5, 6), "bilinear")
    np.testing.assert_allclose(found[..., 3:4], alone, rtol=1e-6)
    one = resize_image(images[0], whole(10, 12), (5, 6), "bilinear")
    np.testing.assert_array_equal(one, found[0])


def test_a_constant_image_stays_constant():
    images = np.full((1, 9, 9, 1), 0.7, np.float32)
    np.testing.assert_allclose(resize_batch(images, [cut(1, 2, 8, 5)], (13, 4), "bicubic"), 0.7, rtol=1e-5)


def test_reach_grows_with_the_reduction():
    assert filter_reach(10.0, 20, "bicubic") == 2.0
    assert filter_reach(40.0, 10, "bicubic") == 8.0
    assert filter_reach(40.0, 10, "bilinear") == 4.0
