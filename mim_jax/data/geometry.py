"""Which part of an image is shown: random resized crops for training, resize and centre crop for evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

CROP_TRIES = 10
CROP_DRAWS = 4 * CROP_TRIES  # uniform numbers a random crop may consume
WINDOW_DRAWS = 2


class View(NamedTuple):
    """A rectangle of an image to be resized to the model's input size, and then shifted.

    `box` is sampled; the antialiasing filter may look outside of it, but never outside of `region`. A crop that is
    cut out before it is resized has both equal, a centre crop of a resized image has the whole image as its region.
    """

    box: tuple[float, float, float, float]  # top, left, bottom, right, in pixels of the source image
    region: tuple[int, int, int, int]  # the same order
    # Rows and columns of the resized picture by which it is shifted up and left; what the shift lays bare is mirrored.
    shift: tuple[int, int] = (0, 0)


def whole(height: int, width: int) -> View:
    """The whole image."""
    return View((0.0, 0.0, float(height), float(width)), (0, 0, height, width))


def random_resized_crop(
    height: int, width: int, draws: Sequence[float], scale: Sequence[float], ratio: Sequence[float]
) -> View:
    """A crop of random area and aspect ratio, as torchvision's `RandomResizedCrop` chooses it (Szegedy et al. 2015).

    Ten tries with area uniform in `scale` and width/height log-uniform in `ratio`; if none fits into the image, the
    largest centred rectangle whose aspect ratio lies within `ratio`.

    Args:
      draws: `CROP_DRAWS` uniform numbers in [0, 1).
      scale: smallest and largest share of the image's area.
      ratio: smallest and largest width/height.
    """
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(CROP_TRIES):
        for_area, for_ratio, for_top, for_left = draws[4 * attempt : 4 * attempt + 4]
        area = height * width * (scale[0] + (scale[1] - scale[0]) * for_area)
        aspect = math.exp(log_low + (log_high - log_low) * for_ratio)
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(for_top * (height - crop_height + 1))
            left = int(for_left * (width - crop_width + 1))
            return _cut(top, left, crop_height, crop_width)
    crop_width, crop_height = width, height
    if width / height < ratio[0]:
        crop_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        crop_width = max(1, round(height * ratio[1]))
    return _cut((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def center_crop(height: int, width: int, size: tuple[int, int], resize: int) -> View:
    """The view that resizing the short side to `resize` and cutting out the centre of `size` would show.

    For a non-square `size` the image is resized so that it covers `size * resize / min(size)`. The view is computed
    in the source image, so that a very long image is never resized as a whole.
    """
    resized = _covering_size(height, width, size, resize)
    top, left = round((resized[0] - size[0]) / 2), round((resized[1] - size[1]) / 2)
    return _part_of_resized(height, width, size, resized, top, left)


def random_window(
    height: int, width: int, draws: Sequence[float], size: tuple[int, int], resize: int, padding: int
) -> View:
    """A random part of `size` of the image with its short side resized to `resize`; torchvision's `RandomCrop`.

    It may reach over each border by `padding` pixels, which mirror the image there (DeiT III's simple random crop).

    Args:
      draws: `WINDOW_DRAWS` uniform numbers in [0, 1).
    """
    resized = _covering_size(height, width, size, resize)
    offsets, shifts = [], []
    for draw, length, visible in zip(draws, resized, size, strict=True):
        offset = int(draw * (length + 2 * padding - visible + 1)) - padding
        inside = min(max(offset, 0), length - visible)
        offsets.append(inside)
        shifts.append(offset - inside)
    view = _part_of_resized(height, width, size, resized, *offsets)
    return view._replace(shift=(shifts[0], shifts[1]))


def _covering_size(height: int, width: int, size: tuple[int, int], resize: int) -> tuple[int, int]:
    """The size of the whole image resized so that it covers `size * resize / min(size)`."""
    cover = [side * resize / min(size) for side in size]
    if cover[0] / height >= cover[1] / width:
        return round(cover[0]), max(size[1], int(round(cover[0]) * width / height))
    return max(size[0], int(round(cover[1]) * height / width)), round(cover[1])


def _part_of_resized(
    height: int, width: int, size: tuple[int, int], resized: tuple[int, int], top: int, left: int
) -> View:
    """The view, in pixels of the source, of a part of `size` of the whole image `resized`."""
    step = (height / resized[0], width / resized[1])
    box = (top * step[0], left * step[1], (top + size[0]) * step[0], (left + size[1]) * step[1])
    return View((box[0], box[1], min(box[2], height), min(box[3], width)), (0, 0, height, width))


def _cut(top: int, left: int, height: int, width: int) -> View:
    region = (top, left, top + height, left + width)
    return View(tuple(map(float, region)), region)
