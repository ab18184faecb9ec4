"""RandAugment for fine-tuning: random colour and geometric distortions of 8-bit images (Cubuk et al. 2020).

Magnitudes, probabilities and operations are those of timm's `rand-m9-mstd0.5-inc1` family, which the fine-tuning
recipes of MAE, BEiT and DeiT use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mim_jax.errors import ConfigError

_LEVELS = 10.0
_DRAWS_PER_OP = 5  # which op, whether, two for the normal deviate of the magnitude, sign
_PROBABILITY = 0.5
_SETTING = re.compile(r"(mstd|inc|[mnp])(\d+(?:\.\d+)?)")


class RandAugment:
    """Two (or `n`) operations, drawn with replacement from fifteen, each applied with probability one half.

    Args:
      setting: "rand" followed by dash-separated parts: `m9` mean magnitude (0 to 10), `mstd0.5` its standard deviation,
        `n2` operations per image, `p0.5` probability of each, `inc1` severities that increase with the magnitude.
      fill: grey level of each channel, shown where a geometric operation looks outside of the image.
      interpolation: "bicubic" or "bilinear", of the geometric operations.

    Raises:
      ConfigError: the setting has an unknown part.
    """

    def __init__(self, setting: str, fill: tuple[int, ...], interpolation: str):
        parts = _parse(setting)
        self._magnitude, self._deviation = parts.get("m", _LEVELS), parts.get("mstd", 0.0)
        self._count, self._probability = int(parts.get("n", 2)), parts.get("p", _PROBABILITY)
        self._operations = _operations(increasing=bool(parts.get("inc", 0)))
        self._warp = warper(fill, interpolation)

    @property
    def num_draws(self) -> int:
        """Uniform numbers one call consumes."""
        return self._count * _DRAWS_PER_OP

    def __call__(self, pixels: np.ndarray, draws: Sequence[float]) -> np.ndarray:
        """Distorts uint8 `pixels [H, W, C]` (C is 1 or 3); a pure function of `draws`, uniform in [0, 1)."""
        image = picture(pixels)
        for number in range(self._count):
            pick, chance, radius, angle, sign = draws[_DRAWS_PER_OP * number : _DRAWS_PER_OP * (number + 1)]
            if chance >= self._probability:
                continue
            normal = math.sqrt(-2.0 * math.log(1.0 - radius)) * math.cos(2.0 * math.pi * angle)  # Box and Muller 1958
            level = min(max(self._magnitude + self._deviation * normal, 0.0), _LEVELS) / _LEVELS
            operation = self._operations[int(pick * len(self._operations))]
            image = operation(image, level, -1 if sign < 0.5 else 1, self._warp)
        return np.asarray(image).reshape(pixels.shape)


Warp = Callable[[Image.Image, tuple[float, ...]], Image.Image]
Operation = Callable[[Image.Image, float, int, Warp], Image.Image]


def picture(pixels: np.ndarray) -> Image.Image:
    """Pillow's form of uint8 `pixels [H, W, C]` (C is 1 or 3)."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def resampling(interpolation: str) -> Image.Resampling:
    """Pillow's name of "bicubic" or "bilinear"."""
    return Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR


def warper(fill: tuple[int, ...], interpolation: str) -> Warp:
    """Affine maps from an output's coordinates to the image's, with `fill` where these lie outside of it."""
    resample, color = resampling(interpolation), fill[0] if len(fill) == 1 else fill

    def warp(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=color)

    return warp


def _parse(setting: str) -> dict[str, float]:
    name, *parts = setting.split("-")
    matches = [_SETTING.fullmatch(part) for part in parts]
    if name != "rand" or None in matches:
        raise ConfigError(
            f"data.rand_augment is {setting!r}; write it like 'rand-m9-mstd0.5-inc1' (m, mstd, n, p, inc)."
        )
    found = {match[1]: float(match[2]) for match in matches}
    if not 0.0 <= found.get("m", 0.0) <= _LEVELS or not 0.0 <= found.get("p", 0.0) <= 1.0:
        raise ConfigError(f"data.rand_augment is {setting!r}; m must lie in [0, {_LEVELS:g}] and p in [0, 1].")
    return found


def _operations(increasing: bool) -> tuple[Operation, ...]:
    """The fifteen operations of (image, level in [0, 1], sign, warp). Their order is part of the random stream."""

    def enhance(kind: type) -> Operation:
        def apply(image: Image.Image, level: float, sign: int, warp: Warp) -> Image.Image:
            return kind(image).enhance(max(0.1, 1.0 + sign * 0.9 * level) if increasing else 0.1 + 1.8 * level)

        return apply

    def posterize(image: Image.Image, level: float, sign: int, warp: Warp) -> Image.Image:
        bits = 4 - int(4 * level) if increasing else int(4 * level)
        # Pillow refuses 0 bits for a picture that is then black anyway.
        return ImageOps.posterize(image, bits) if bits else image.point(lambda value: 0)

    def solarize(image: Image.Image, level: float, sign: int, warp: Warp) -> Image.Image:
        threshold = min(256, int(256 * level))
        return ImageOps.solarize(image, 256 - threshold if increasing else threshold)

    return (
        lambda image, level, sign, warp: ImageOps.autocontrast(image),
        lambda image, level, sign, warp: ImageOps.equalize(image),
        lambda image, level, sign, warp: ImageOps.invert(image),
        _rotate,
        posterize,
        solarize,
        _solarize_add,
        enhance(ImageEnhance.Color),
        enhance(ImageEnhance.Contrast),
        enhance(ImageEnhance.Brightness),
        enhance(ImageEnhance.Sharpness),
        lambda image, level, sign, warp: warp(image, (1, 0.3 * level * sign, 0, 0, 1, 0)),
        lambda image, level, sign, warp: warp(image, (1, 0, 0, 0.3 * level * sign, 1, 0)),
        lambda image, level, sign, warp: warp(image, (1, 0, 0.45 * level * sign * image.width, 0, 1, 0)),
        lambda image, level, sign, warp: warp(image, (1, 0, 0, 0, 1, 0.45 * level * sign * image.height)),
    )


def _rotate(image: Image.Image, level: float, sign: int, warp: Warp) -> Image.Image:
    """Turns by up to 30 degrees around the centre, counter-clockwise for a positive sign."""
    angle = math.radians(30.0 * level * sign)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = image.width / 2, image.height / 2
    return warp(image, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y))


def _solarize_add(image: Image.Image, level: float, sign: int, warp: Warp) -> Image.Image:
    """Brightens the darker half of the grey levels by up to 110."""
    add = min(128, int(110 * level))
    return image.point(
        [min(255, value + add) if value < 128 else value for value in range(256)] * len(image.getbands())
    )
