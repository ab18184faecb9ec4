"""Boxes of noise."""

import numpy as np

from mim_jax.data.random_erasing import erase_boxes


def erased(count: int, probability: float, size=(64, 64), seed: int = 0, first: int = 0) -> np.ndarray:
    images = np.full((count, *size, 3), 100.0, np.float32)
    erase_boxes(images, seed, np.arange(first, first + count), probability)
    return images


def test_boxes():
    images = erased(300, 1.0)
    for image in images:
        changed = (image != 100.0).all(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert changed.sum() == height * width  # one filled rectangle
        assert 0.018 < height * width / 64**2 < 0.35
        assert 0.27 < height / width < 3.7
    shares = (images != 100.0).mean(axis=(1, 2, 3))
    assert shares.min() < 0.04 and shares.max() > 0.3


def test_noise_is_standard_normal_per_pixel():
    images = erased(200, 1.0)
    noise = images[images != 100.0]
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert len(np.unique(noise)) > 0.9 * noise.size


def test_the_share_of_erased_images():
    share = (erased(2000, 0.25, (8, 8)) != 100.0).any(axis=(1, 2, 3)).mean()
    assert 0.22 < share < 0.28
    assert (erased(50, 0.0) == 100.0).all()


def test_a_function_of_seed_and_position():
    np.testing.assert_array_equal(erased(20, 0.5)[7:], erased(13, 0.5, first=7))
    assert (erased(20, 0.5) != erased(20, 0.5, seed=1)).any()


def test_images_too_small_for_a_box():
    assert (erased(5, 1.0, (1, 1)) == 100.0).all()
