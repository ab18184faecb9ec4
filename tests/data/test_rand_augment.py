"""RandAugment's operations, magnitudes and frequencies."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mim_jax.data.rand_augment import RandAugment
from mim_jax.errors import ConfigError
from tests.data.make import photo

PIXELS = photo(40, 60)
IMAGE = Image.fromarray(PIXELS)
FILL = (124, 116, 104)
NAMES = ["AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast"]
NAMES += ["Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY"]


def apply(name: str, magnitude: float, negative: bool = False, setting: str = "-inc1") -> np.ndarray:
    augment = RandAugment(f"rand-m{magnitude}-n1-p1{setting}", FILL, "bicubic")
    pick = (NAMES.index(name) + 0.5) / len(NAMES)
    return augment(PIXELS, [pick, 0.0, 0.0, 0.0, 0.0 if negative else 0.9])


def affine(matrix: tuple[float, ...]) -> np.ndarray:
    moved = IMAGE.transform(IMAGE.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL)
    return np.asarray(moved)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AutoContrast", ImageOps.autocontrast(IMAGE)),
        ("Equalize", ImageOps.equalize(IMAGE)),
        ("Invert", ImageOps.invert(IMAGE)),
        ("Posterize", ImageOps.posterize(IMAGE, 1)),  # 4 - int(0.9 * 4)
        ("Solarize", ImageOps.solarize(IMAGE, 26)),  # 256 - int(0.9 * 256)
        ("SolarizeAdd", IMAGE.point(lambda value: min(255, value + 99) if value < 128 else value)),
        ("Color", ImageEnhance.Color(IMAGE).enhance(1.81)),
        ("Contrast", ImageEnhance.Contrast(IMAGE).enhance(1.81)),
        ("Brightness", ImageEnhance.Brightness(IMAGE).enhance(1.81)),
        ("Sharpness", ImageEnhance.Sharpness(IMAGE).enhance(1.81)),
    ],
)
def test_colours_at_magnitude_nine(name, expected):
    np.testing.assert_array_equal(apply(name, 9), np.asarray(expected))


@pytest.mark.parametrize(
    ("name", "matrix"),
    [
        ("ShearX", (1, 0.27, 0, 0, 1, 0)),
        ("ShearY", (1, 0, 0, 0.27, 1, 0)),
        ("TranslateX", (1, 0, 0.405 * 60, 0, 1, 0)),
        ("TranslateY", (1, 0, 0, 0, 1, 0.405 * 40)),
    ],
)
def test_geometry_at_magnitude_nine(name, matrix):
    np.testing.assert_array_equal(apply(name, 9), affine(matrix))
    negated = tuple(-value if abs(value) > 0 and value != 1 else value for value in matrix)
    np.testing.assert_array_equal(apply(name, 9, negative=True), affine(negated))


@pytest.mark.parametrize("negative", [False, True])
def test_rotation(negative):
    angle = -27.0 if negative else 27.0
    expected = np.asarray(IMAGE.rotate(angle, Image.Resampling.BICUBIC, fillcolor=FILL))
    found = apply("Rotate", 9, negative).astype(int)
    assert (np.abs(found - expected) > 1).mean() < 0.01
    assert found[0, 0].tolist() == list(FILL)


def test_severity_without_increasing():
    np.testing.assert_array_equal(apply("Posterize", 10, setting=""), np.asarray(ImageOps.posterize(IMAGE, 4)))
    np.testing.assert_array_equal(apply("Solarize", 5, setting=""), np.asarray(ImageOps.solarize(IMAGE, 128)))
    np.testing.assert_array_equal(apply("Color", 0, setting=""), np.asarray(ImageEnhance.Color(IMAGE).enhance(0.1)))


def test_extreme_magnitudes():
    assert not apply("Posterize", 10).any()
    np.testing.assert_array_equal(
        apply("Brightness", 10, True), np.asarray(ImageEnhance.Brightness(IMAGE).enhance(0.1))
    )
    for name in ("ShearX", "TranslateY", "Rotate", "Color", "Solarize"):
        np.testing.assert_array_equal(apply(name, 0), PIXELS)


def test_grey_images():
    augment = RandAugment("rand-m9-mstd0.5-inc1", (70,), "bilinear")
    rng = np.random.default_rng(0)
    for _ in range(100):
        assert augment(PIXELS[..., :1], rng.random(augment.num_draws).tolist()).shape == (40, 60, 1)


def test_it_is_a_pure_function_and_uses_all_operations_evenly():
    augment = RandAugment("rand-m9-mstd0.5-inc1", FILL, "bicubic")
    rng = np.random.default_rng(0)
    draws = rng.random((400, augment.num_draws))
    found = [augment(PIXELS, row.tolist()) for row in draws]
    for row, image in zip(draws[:20], found, strict=False):
        np.testing.assert_array_equal(augment(PIXELS, row.tolist()), image)
    untouched = np.mean([(image == PIXELS).all() for image in found])
    assert 0.18 < untouched < 0.32  # a quarter


def test_magnitudes_are_normal_and_clipped():
    augment = RandAugment("rand-m9-mstd0.5-n1-p1-inc1", FILL, "bicubic")
    levels = []
    augment._operations = (lambda image, level, sign, warp: levels.append(level) or image,)
    for row in np.random.default_rng(0).random((3000, augment.num_draws)):
        augment(PIXELS, row.tolist())
    levels = np.array(levels)
    assert levels.max() == 1.0 and 0.01 < (levels == 1.0).mean() < 0.04
    assert abs(levels.mean() - 0.9) < 0.005 and abs(levels.std() - 0.05) < 0.005


@pytest.mark.parametrize("setting", ["augmix-m9", "rand-x3", "rand-m", "rand m9", "rand-m11", "rand-m9-p2"])
def test_unknown_settings(setting):
    with pytest.raises(ConfigError, match=f"data.rand_augment is '{setting}'"):
        RandAugment(setting, FILL, "bicubic")
