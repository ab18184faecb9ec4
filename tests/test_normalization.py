"""Normalisation and its inverse."""

import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.normalization import KNOWN, denormalize, normalization, normalize_pixels
from tests.data.make import config


@pytest.mark.parametrize(
    ("source", "channels", "mean", "std"),
    [
        ("tfds:imagenet2012:5.1.0", 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("folder:/x", 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("tfds:fashion_mnist", 1, (0.2860,), (0.3530,)),
        ("tfds:fashion_mnist/x", 3, (0.2860,) * 3, (0.3530,) * 3),
        ("npz:/x", 1, (0.449,), (0.226,)),
    ],
)
def test_constants(source, channels, mean, std):
    found = normalization(config(source, channels=channels))
    np.testing.assert_allclose(found[0], mean, rtol=1e-6)
    np.testing.assert_allclose(found[1], std, rtol=1e-6)
    assert found[0].dtype == found[1].dtype == np.float32


def test_the_table_is_sane():
    for mean, std in KNOWN.values():
        assert len(mean) == len(std) and all(0 < value < 1 for value in (*mean, *std))


def test_the_config_wins():
    mean, std = normalization(config("tfds:fashion_mnist", channels=2, mean=(0.1, 0.2), std=(0.3, 0.4)))
    np.testing.assert_allclose([mean, std], [(0.1, 0.2), (0.3, 0.4)], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(mean=(0.5,)), "data.mean has 1 values but channels is 3"),
        (dict(std=(0.5, 0.5, 0.0)), "data.std is .* must be positive"),
        (dict(channels=13), "channels is 13 and no constants are known for so many; set data.mean"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ConfigError, match=message):
        normalization(config("folder:/x", **changes))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_there_and_back(dtype):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 5, 4, 3), np.uint8) if dtype == np.uint8 else rng.random((2, 5, 4, 3), dtype)
    scaled = pixels / 255 if dtype == np.uint8 else pixels
    mean, std = np.float32([0.1, 0.2, 0.3]), np.float32([0.5, 0.6, 0.7])
    out = np.empty(pixels.shape, np.float32)
    normalize_pixels(pixels, mean, std, out)
    np.testing.assert_allclose(out, (scaled - mean) / std, atol=1e-6)
    np.testing.assert_allclose(denormalize(out, mean, std), scaled, atol=1e-6)


def test_denormalized_pixels_are_clipped():
    assert denormalize(np.float32([[-9.0, 9.0]]), np.float32([0.5, 0.5]), np.float32([1, 1])).tolist() == [[0.0, 1.0]]
