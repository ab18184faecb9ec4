"""From the bytes of an image file to the RGB (or grey) pixels a viewer shows."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from mim_jax.data import jpeg
from mim_jax.data.geometry import View
from mim_jax.data.lazy_tensorflow import import_tensorflow
from mim_jax.data.resize import resize_image

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte of RGB, where Pillow too begins to suspect a decompression bomb

# What Pillow's parsers raise on damaged files, besides its own classes, all of which derive from these.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError)
_DAMAGE += (struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning)


class UnreadableImageError(ValueError):
    """The bytes are not an image that can be decoded; the message says why."""


def decode_resized(
    data: bytes, choose_view: Callable[[int, int], View], size: tuple[int, int], channels: int, interpolation: str
) -> np.ndarray:
    """The chosen view of an encoded image, resized: uint8 `[size[0], size[1], channels]`.

    Args:
      data: a file's content, in any format Pillow reads.
      choose_view: called with the upright picture's height and width.
      channels: 3 for RGB or 1 for luminance.

    Raises:
      UnreadableImageError: the data is corrupt, truncated, empty, not an image, or has too many pixels.
    """
    header = jpeg.read_header(data) if data[:2] == b"\xff\xd8" else None
    if header is None or not header.plain or import_tensorflow() is None:
        pixels = decode(data, channels)
        return resize_image(pixels, choose_view(pixels.shape[0], pixels.shape[1]), size, interpolation)
    _check_size(header.height, header.width)
    view = choose_view(header.height, header.width)
    try:
        pixels, view = jpeg.decode_view(data, header, view, size, channels, interpolation)
    except jpeg.CorruptJpegError as error:
        raise UnreadableImageError(str(error)) from error
    return resize_image(pixels, view, size, interpolation)


def decode(data: bytes, channels: int) -> np.ndarray:
    """The whole picture, upright, its first frame, over white where it is transparent: uint8 `[H, W, channels]`.

    Raises:
      UnreadableImageError: as `decode_resized`.
    """
    if not data:
        raise UnreadableImageError("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image.height, image.width)
            upright = ImageOps.exif_transpose(image)
            flat = _flatten(upright).convert("L" if channels == 1 else "RGB")
    except UnreadableImageError:
        raise
    except _DAMAGE as error:
        raise UnreadableImageError(str(error) or type(error).__name__) from error
    return np.asarray(flat).reshape(flat.height, flat.width, channels)


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise UnreadableImageError(f"{width}x{height} pixels exceed the limit of {MAX_PIXELS}")
    if height * width == 0:
        raise UnreadableImageError(f"the header says {width}x{height} pixels")


def _flatten(image: Image.Image) -> Image.Image:
    """Reduces 16-bit grey to 8 bits and lays transparent pictures over white."""
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise UnreadableImageError(f"its grey values run from {grey.min()} to {grey.max()}, beyond 16 bits")
        return Image.fromarray((grey.astype(np.uint32) * 255 // 65535).astype(np.uint8))
    if image.mode == "F":
        raise UnreadableImageError("it holds floating-point values whose range is unknown")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layer)
    return image
