"""Random erasing for fine-tuning: a box of Gaussian noise over part of the normalised image (Zhong et al. 2020)."""

from __future__ import annotations

import math

import numpy as np

from mim_jax.data.stateless import Stream, keys, uniforms

_TRIES = 10
_AREA = (0.02, 1 / 3)  # share of the image
_ASPECT = (0.3, 10 / 3)  # height over width, drawn log-uniformly


def erase_boxes(images: np.ndarray, seed: int, positions: np.ndarray, probability: float) -> None:
    """Overwrites one random box in some of the normalised `images [n, H, W, C]` in place with N(0, 1) noise per pixel.

    Which images, the boxes and the noise are functions of `seed` and the stream `positions [n]`.
    """
    draws = uniforms(seed, Stream.RANDOM_ERASING, positions, 1 + 4 * _TRIES)
    noise_keys = keys(seed, Stream.RANDOM_ERASING, positions)
    for image, row, key in zip(images, draws.tolist(), noise_keys.tolist(), strict=True):
        if row[0] >= probability:
            continue
        box = _box(image.shape[0], image.shape[1], row[1:])
        if box is None:
            continue
        top, left, height, width = box
        generator = np.random.Generator(np.random.Philox(key=key))
        noise = generator.standard_normal((height, width, image.shape[2]), np.float32)
        image[top : top + height, left : left + width] = noise


def _box(height: int, width: int, draws: list[float]) -> tuple[int, int, int, int] | None:
    """Top, left, height and width of the first tried box that fits, or None."""
    log_low, log_high = math.log(_ASPECT[0]), math.log(_ASPECT[1])
    for attempt in range(_TRIES):
        for_area, for_aspect, for_top, for_left = draws[4 * attempt : 4 * attempt + 4]
        area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * for_area)
        aspect = math.exp(log_low + (log_high - log_low) * for_aspect)
        box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_height < height and 0 < box_width < width:
            top = int(for_top * (height - box_height + 1))
            left = int(for_left * (width - box_width + 1))
            return top, left, box_height, box_width
    return None
