"""Colour distortions of self-supervised recipes: jitter, grey, blur, solarisation, and DeiT III's choice of three."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

NUM_DRAWS = 12
# The keys of the `data` section that distort colours, with the values that do not.
OFF = {"color_jitter": None, "three_augment": False, "grayscale": 0.0, "blur": 0.0, "solarize": 0.0}
_SOLARIZE_THRESHOLD = 128
_BLUR_RADIUS = (0.1, 2.0)
_ORDERS = tuple(itertools.permutations(range(4)))
_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclasses.dataclass(frozen=True)
class ColorDistortion:
    """Distorts 8-bit images by torchvision's operations, in its random order and with its ranges."""

    jitter: tuple[float, float, float, float] | None  # brightness, contrast, saturation, hue; see data.color_jitter
    probability: float  # of jittering an image
    three_augment: bool
    # Probabilities, each for itself; applied after the jitter in this order (BYOL, DINO, MoCo v3).
    grayscale: float = 0.0
    blur: float = 0.0
    solarize: float = 0.0

    def __call__(self, pixels: np.ndarray, draws: Sequence[float]) -> np.ndarray:
        """Distorts uint8 `pixels [H, W, C]` (C is 1 or 3); a pure function of `NUM_DRAWS` numbers in [0, 1)."""
        chance, order, *factors, operation, radius, grayscale, blur, sigma, solarize = draws
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        if self.jitter is not None and chance < self.probability:
            image = self._jitter(image, factors, _ORDERS[int(order * len(_ORDERS))])
        if self.three_augment:
            image = _one_of_three(image, int(3 * operation), radius)
        if grayscale < self.grayscale:
            image = _grey(image)
        if blur < self.blur:
            image = _blurred(image, sigma)
        if solarize < self.solarize:
            image = _solarized(image)
        return np.asarray(image).reshape(pixels.shape)

    def _jitter(self, image: Image.Image, factors: Sequence[float], order: Sequence[int]) -> Image.Image:
        for which in order:
            change = (2.0 * factors[which] - 1.0) * self.jitter[which]
            if self.jitter[which] == 0.0:
                continue
            image = _ENHANCERS[which](image).enhance(1.0 + change) if which < 3 else _turn_hue(image, change)
        return image


def _turn_hue(image: Image.Image, turns: float) -> Image.Image:
    """Turns the hue of all pixels by `turns` in [-0.5, 0.5] of the circle; grey pictures have none."""
    if image.mode != "RGB":
        return image
    hue, saturation, value = image.convert("HSV").split()
    step = int(turns * 255)  # truncated, as torchvision does
    hue = hue.point([(level + step) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _one_of_three(image: Image.Image, operation: int, radius: float) -> Image.Image:
    if operation == 0:
        return _grey(image)
    if operation == 1:
        return _solarized(image)
    return _blurred(image, radius)


def _grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert(image.mode)


def _solarized(image: Image.Image) -> Image.Image:
    return ImageOps.solarize(image, _SOLARIZE_THRESHOLD)


def _blurred(image: Image.Image, draw: float) -> Image.Image:
    low, high = _BLUR_RADIUS
    return image.filter(ImageFilter.GaussianBlur(low + (high - low) * draw))


def color_distortion(data: ConfigDict) -> ColorDistortion | None:
    """What a config's `data` section asks for; None if nothing."""
    if active_key(data) is None:
        return None
    jitter = None if data.color_jitter is None else tuple(map(float, data.color_jitter))
    return ColorDistortion(
        jitter, data.color_jitter_probability, data.three_augment, data.grayscale, data.blur, data.solarize
    )


def active_key(data: ConfigDict) -> str | None:
    """The first key of the `data` section that distorts colours; None if none does."""
    return next((key for key, off in OFF.items() if data[key] != off), None)
