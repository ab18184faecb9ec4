"""TrivialAugment's operations and magnitudes, as torchvision's documentation lists them."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from mim_jax.data.trivial_augment import TrivialAugment
from tests.data.make import photo

PIXELS = photo(40, 60)
IMAGE = Image.fromarray(PIXELS)
BINS = 31
# In torchvision's order: magnitudes, signed.
SPACE = {
    "Identity": (torch.zeros(1), False),
    "ShearX": (torch.linspace(0.0, 0.99, BINS), True),
    "ShearY": (torch.linspace(0.0, 0.99, BINS), True),
    "TranslateX": (torch.linspace(0.0, 32.0, BINS), True),
    "TranslateY": (torch.linspace(0.0, 32.0, BINS), True),
    "Rotate": (torch.linspace(0.0, 135.0, BINS), True),
    "Brightness": (torch.linspace(0.0, 0.99, BINS), True),
    "Color": (torch.linspace(0.0, 0.99, BINS), True),
    "Contrast": (torch.linspace(0.0, 0.99, BINS), True),
    "Sharpness": (torch.linspace(0.0, 0.99, BINS), True),
    "Posterize": (8 - (torch.arange(BINS) / ((BINS - 1) / 6)).round().int(), False),
    "Solarize": (torch.linspace(255.0, 0.0, BINS), False),
    "AutoContrast": (torch.zeros(1), False),
    "Equalize": (torch.zeros(1), False),
}
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def expected(name: str, magnitude: float, image: Image.Image = IMAGE, resample=Image.Resampling.BICUBIC):
    """What torchvision does to a Pillow image."""

    def affine(*matrix: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample)

    operations = {
        "Identity": lambda: image,
        "ShearX": lambda: affine(1, magnitude, 0, 0, 1, 0),
        "ShearY": lambda: affine(1, 0, 0, magnitude, 1, 0),
        "TranslateX": lambda: affine(1, 0, -int(magnitude), 0, 1, 0),
        "TranslateY": lambda: affine(1, 0, 0, 0, 1, -int(magnitude)),
        "Rotate": lambda: image.rotate(magnitude, resample),
        "Brightness": lambda: ImageEnhance.Brightness(image).enhance(1.0 + magnitude),
        "Color": lambda: ImageEnhance.Color(image).enhance(1.0 + magnitude),
        "Contrast": lambda: ImageEnhance.Contrast(image).enhance(1.0 + magnitude),
        "Sharpness": lambda: ImageEnhance.Sharpness(image).enhance(1.0 + magnitude),
        "Posterize": lambda: ImageOps.posterize(image, int(magnitude)),
        "Solarize": lambda: ImageOps.solarize(image, magnitude),
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
    }
    return np.asarray(operations[name]())


def draws(name: str, number: int, negative: bool) -> list[float]:
    count = len(SPACE[name][0])
    return [(list(SPACE).index(name) + 0.5) / len(SPACE), (number + 0.5) / count, 0.25 if negative else 0.75]


@pytest.mark.parametrize("name", SPACE)
def test_every_magnitude_is_torchvisions(name):
    augment = TrivialAugment(3, "bicubic")
    magnitudes, signed = SPACE[name]
    found = []
    for number, magnitude in enumerate(magnitudes.tolist()):
        for negative in (False, True):
            found.append(augment(PIXELS, draws(name, number, negative)))
            wanted = expected(name, -magnitude if negative and signed else magnitude)
            np.testing.assert_array_equal(found[-1], wanted, err_msg=str((number, negative)))
    different = {image.tobytes() for image in found}
    bins = {"Posterize": 7, "Solarize": BINS, "Identity": 1, "AutoContrast": 1, "Equalize": 1}
    assert len(different) == bins.get(name, 2 * BINS - 1)


@pytest.mark.parametrize("name", GEOMETRIC)
def test_grey_images_and_the_other_interpolation(name):
    augment = TrivialAugment(1, "bilinear")
    grey = np.asarray(IMAGE.convert("L"))
    found = augment(grey[..., None], draws(name, 20, True))
    wanted = expected(name, -SPACE[name][0][20].item(), IMAGE.convert("L"), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, wanted[..., None])


def test_operations_are_equally_likely():
    augment, picked = TrivialAugment(3, "bicubic"), []
    for number, entry in enumerate(augment._operations):
        record = lambda image, magnitude, number=number: picked.append(number) or image
        augment._operations = (*augment._operations[:number], (record, *entry[1:]), *augment._operations[number + 1 :])
    for row in np.random.default_rng(0).random((7000, augment.num_draws)):
        augment(PIXELS[:1, :1], row.tolist())
    counts = np.bincount(picked, minlength=14)
    assert counts.min() > 420 and counts.max() < 580  # 500 each, +-3.7 sigmas
