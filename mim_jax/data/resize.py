"""Antialiased resizing: Pillow for single photos, batched matrix products for many small images.

Both compute the same filter (bicubic a = -0.5 or bilinear, stretched when an image is reduced, as Pillow does); they
differ by at most one grey level, because Pillow rounds between its two passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mim_jax.data.geometry import View

_CHUNK = 64  # images resized at once: small enough for the weights to stay in the cache
_SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}
_PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def filter_reach(length: float, out_length: int, interpolation: str) -> float:
    """How many source pixels the filter looks beyond a box of `length` pixels that is resized to `out_length`."""
    return _SUPPORT[interpolation] * max(length / out_length, 1.0)


def resize_image(pixels: np.ndarray, view: View, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """What `view` shows of `pixels [H, W, C]`, resized to `[size[0], size[1], C]` in the same dtype.

    uint8 images of 1 or 3 channels give Pillow's result bit for bit.
    """
    if pixels.dtype != np.uint8 or pixels.shape[2] not in (1, 3):
        return resize_batch(pixels[None], [view], size, interpolation)[0]
    top, left, bottom, right = view.region
    region = np.ascontiguousarray(pixels[top:bottom, left:right])
    image = Image.fromarray(region[:, :, 0] if pixels.shape[2] == 1 else region)
    box = (view.box[1] - left, view.box[0] - top, view.box[3] - left, view.box[2] - top)
    resized = image.resize((size[1], size[0]), _PILLOW[interpolation], box=box)
    return _shifted(np.asarray(resized).reshape(size[0], size[1], pixels.shape[2]), view.shift)


def resize_batch(images: np.ndarray, views: Sequence[View], size: tuple[int, int], interpolation: str) -> np.ndarray:
    """What each of `views` (length B) shows of `images [B, H, W, C]`: `[B, size[0], size[1], C]` in the same dtype.

    uint8 results are rounded and clipped; float results are not, so they may overshoot the input's range a little.
    """
    batch, height, width, channels = images.shape
    boxes = np.array([view.box for view in views], np.float32).reshape(batch, 4)
    regions = np.array([view.region for view in views], np.float32).reshape(batch, 4)
    out = np.empty((batch, size[0], size[1], channels), images.dtype)
    for start in range(0, batch, _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = _weights(height, size[0], boxes[part, 0::2], regions[part, 0::2], interpolation)
        columns = _weights(width, size[1], boxes[part, 1::2], regions[part, 1::2], interpolation)
        pixels = images[part].astype(np.float32)
        # Rows first, [b, h, H] @ [b, H, W * C], then columns, [b, h * C, W] @ [b, W, w]: one product per image each.
        tall = np.matmul(rows, pixels.reshape(len(pixels), height, width * channels))
        tall = tall.reshape(-1, size[0], width, channels).transpose(0, 1, 3, 2)
        result = np.matmul(tall.reshape(len(pixels), size[0] * channels, width), columns.transpose(0, 2, 1))
        result = result.reshape(-1, size[0], channels, size[1]).transpose(0, 1, 3, 2)
        out[part] = np.clip(np.rint(result), 0, 255) if images.dtype == np.uint8 else result
    for slot, view in enumerate(views):
        if view.shift != (0, 0):
            out[slot] = _shifted(out[slot], view.shift)
    return out


def _shifted(pixels: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    """`pixels [H, W, C]` from row and column `shift` on; beyond a border they are mirrored at its outermost pixel."""
    if shift == (0, 0):
        return pixels
    rows, columns = (np.abs(np.arange(n) + by) for n, by in zip(pixels.shape[:2], shift, strict=True))
    rows, columns = (np.minimum(i, 2 * (n - 1) - i) for i, n in zip((rows, columns), pixels.shape[:2], strict=True))
    return pixels[rows[:, None], columns]


def _weights(length: int, out_length: int, box: np.ndarray, region: np.ndarray, interpolation: str) -> np.ndarray:
    """Resampling matrices `[b, out_length, length]` for intervals `box [b, 2]`; zero outside of `region [b, 2]`."""
    scale = ((box[:, 1] - box[:, 0]) / out_length)[:, None, None]
    stretch = np.maximum(scale, np.float32(1))
    outputs = np.arange(out_length, dtype=np.float32)[None, :, None] + np.float32(0.5)
    pixels = np.arange(length, dtype=np.float32)[None, None, :] + np.float32(0.5)
    distance = np.abs(pixels - (box[:, 0, None, None] + outputs * scale)) / stretch
    weights = _bicubic(distance) if interpolation == "bicubic" else np.maximum(1 - distance, np.float32(0))
    inside = (pixels > region[:, 0, None, None]) & (pixels < region[:, 1, None, None])
    weights *= inside
    return weights / weights.sum(axis=2, keepdims=True)


def _bicubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5 at non-negative distances (Keys 1981)."""
    near = (np.float32(1.5) * distance - np.float32(2.5)) * distance * distance + 1
    far = ((np.float32(-0.5) * distance + np.float32(2.5)) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, np.float32(0)))
