"""TrivialAugment (wide) for fine-tuning: one random distortion of an 8-bit image at a random magnitude.

Müller and Hutter 2021, arXiv 2103.10158; operations and magnitudes are those of torchvision's `TrivialAugmentWide`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mim_jax.data.rand_augment import picture, resampling, warper

_BINS = 31  # magnitudes of every operation, evenly spaced

# Of (image, magnitude), signed.
Operation = Callable[[Image.Image, float], Image.Image]


class TrivialAugment:
    """One of fourteen operations, the identity among them, all equally likely.

    Shears are those of torchvision since 0.12: by the magnitude itself and from the image's corner. (Before, by its
    tangent, around the centre.)

    Args:
      channels: of the images, 1 or 3. What lies outside of an image is black.
      interpolation: "bicubic" or "bilinear", of the geometric operations.
    """

    num_draws = 3  # uniform numbers one call consumes: operation, magnitude, sign

    def __init__(self, channels: int, interpolation: str):
        self._operations = _operations((0,) * channels, interpolation)

    def __call__(self, pixels: np.ndarray, draws: Sequence[float]) -> np.ndarray:
        """Distorts uint8 `pixels [H, W, C]`; a pure function of `draws`, uniform in [0, 1)."""
        pick, bin_draw, sign = draws
        operation, magnitudes, is_signed = self._operations[int(pick * len(self._operations))]
        magnitude = magnitudes[int(bin_draw * len(magnitudes))]
        magnitude = -magnitude if is_signed and sign < 0.5 else magnitude
        return np.asarray(operation(picture(pixels), magnitude)).reshape(pixels.shape)


def _upto(limit: float) -> tuple[float, ...]:
    """Evenly from 0 to `limit`, rounded as PyTorch rounds them: a translation by 16 is one by `int(15.999999)`."""
    step, last = float(np.float32(limit / (_BINS - 1))), _BINS - 1
    exact = (step * number if number < _BINS // 2 else limit - step * (last - number) for number in range(_BINS))
    return tuple(float(np.float32(value)) for value in exact)


def _operations(fill: tuple[int, ...], interpolation: str) -> tuple[tuple[Operation, tuple[float, ...], bool], ...]:
    """The operations, the magnitudes of each, and whether half of them are negated.

    Their order is part of the random stream.
    """
    warp, resample = warper(fill, interpolation), resampling(interpolation)
    color = fill[0] if len(fill) == 1 else fill

    def enhance(kind: type) -> tuple[Operation, tuple[float, ...], bool]:
        return lambda image, magnitude: kind(image).enhance(1.0 + magnitude), _upto(0.99), True

    bits = tuple(8 - round(6 * number / (_BINS - 1)) for number in range(_BINS))
    thresholds = tuple(255.0 - magnitude for magnitude in _upto(255.0))
    return (
        (lambda image, magnitude: image, (0.0,), False),
        (lambda image, magnitude: warp(image, (1, magnitude, 0, 0, 1, 0)), _upto(0.99), True),
        (lambda image, magnitude: warp(image, (1, 0, 0, magnitude, 1, 0)), _upto(0.99), True),
        # By whole pixels, to the right and down for a positive sign.
        (lambda image, magnitude: warp(image, (1, 0, -int(magnitude), 0, 1, 0)), _upto(32.0), True),
        (lambda image, magnitude: warp(image, (1, 0, 0, 0, 1, -int(magnitude))), _upto(32.0), True),
        # By degrees, counter-clockwise for a positive sign.
        (lambda image, magnitude: image.rotate(magnitude, resample, fillcolor=color), _upto(135.0), True),
        enhance(ImageEnhance.Brightness),
        enhance(ImageEnhance.Color),
        enhance(ImageEnhance.Contrast),
        enhance(ImageEnhance.Sharpness),
        (lambda image, magnitude: ImageOps.posterize(image, magnitude), bits, False),
        (lambda image, magnitude: ImageOps.solarize(image, magnitude), thresholds, False),
        (lambda image, magnitude: ImageOps.autocontrast(image), (0.0,), False),
        (lambda image, magnitude: ImageOps.equalize(image), (0.0,), False),
    )
