"""Clips to sequences of flattened tubes and back, and fixed positions in time, row and column (V-JEPA).

A tube is a patch over `tubelet_size` frames; an image is a clip of one frame, and its tubes are its patches.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

Tube = tuple[int, int, int]  # frames, rows and columns of pixels


def as_clips(images: jax.Array, num_frames: int) -> jax.Array:
    """Clips `[B, T, H, W, C]` as they are; of images `[B, H, W, C]`, clips that show each in all `num_frames` frames.

    The second is how V-JEPA's authors evaluate a video encoder on images.
    """
    if images.ndim == 5:
        return images
    batch, *rest = images.shape
    return jnp.broadcast_to(images[:, None], (batch, num_frames, *rest))


def tubify(clips: jax.Array, tube: Tube) -> jax.Array:
    """`[B, T, H, W, C]` to `[B, N, t*h*w*C]`: tubes by time, row and column, each flattened likewise, channels last."""
    batch, frames, height, width, channels = clips.shape
    t, h, w = tube
    times, rows, columns = frames // t, height // h, width // w
    x = clips.reshape(batch, times, t, rows, h, columns, w, channels)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, times * rows * columns, t * h * w * channels)


def untubify(tubes: jax.Array, tube: Tube, grid: tuple[int, int, int]) -> jax.Array:
    """The inverse of `tubify` for a `grid` of tubes `(times, rows, columns)`: back to `[B, T, H, W, C]`."""
    batch, _, length = tubes.shape
    (t, h, w), (times, rows, columns) = tube, grid
    channels = length // (t * h * w)
    x = tubes.reshape(batch, times, rows, columns, t, h, w, channels)
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, times * t, rows * h, columns * w, channels)


@functools.lru_cache(maxsize=32)
def sincos_table_3d(grid: tuple[int, int, int], width: int) -> np.ndarray:
    """Fixed sin-cos positions `[times * rows * columns, width]` float32 as V-JEPA's "uniform power" computes them.

    Time, row and column get a part of `2 * ceil(width / 6)` channels each, in this order, and what is beyond `width` is
    cut off. A part is `[sin | cos]` of the coordinate times `10000^(-k / (part / 2))`, in float64 before the cast.
    """
    half = -(-width // 6)
    omega = 10000.0 ** (-np.arange(half, dtype=np.float64) / half)
    angles = [coordinate.reshape(-1, 1) * omega for coordinate in np.indices(grid)]
    parts = [np.concatenate([np.sin(angle), np.cos(angle)], axis=1) for angle in angles]
    table = np.concatenate(parts, axis=1)[:, :width].astype(np.float32)
    table.setflags(write=False)
    return table
