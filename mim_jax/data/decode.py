"""From the bytes of an image file to the RGB (or grey) pixels a viewer shows."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mim_jax.data import jpeg
from mim_jax.data.geometry import View
from mim_jax.data.lazy_tensorflow import import_tensorflow
from mim_jax.data.memory import MemoryBudget
from mim_jax.data.resize import resize_image

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte of RGB, where Pillow too begins to suspect a decompression bomb
MAX_BYTES = 3 * MAX_PIXELS  # of a file: what its largest picture takes without compression

# Pillow knows many more; for one of them it starts another program (PostScript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# What Pillow's parsers raise on damaged files, besides its own classes, all of which derive from these.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError)
_DAMAGE += (MemoryError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning)

# Images being decoded at the same time share this much: with a thread per core, a few huge ones would add up.
_BUDGET = MemoryBudget(4 * 2**30)
_PILLOW_COST = 16  # bytes per pixel at most: the picture, its white ground and their sum take 4 each
_JPEG_COST = 9  # the pixels, and 16-bit coefficients where the file is progressive

_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags


class UnreadableImageError(ValueError):
    """The bytes are not an image that can be decoded; the message says why."""


def decode_resized(
    data: bytes, choose_view: Callable[[int, int], View], size: tuple[int, int], channels: int, interpolation: str
) -> np.ndarray:
    """The chosen view of an encoded image, resized: uint8 `[size[0], size[1], channels]`.

    Args:
      data: a file's content, in one of `FORMATS`.
      choose_view: called with the upright picture's height and width.
      channels: 3 for RGB or 1 for luminance.

    Raises:
      UnreadableImageError: the data is corrupt, truncated, empty, not an image, or has too many pixels or bytes.
    """
    header = jpeg.read_header(data) if data[:2] == b"\xff\xd8" else None
    if header is not None:
        _check_size(header.height, header.width)
        if not jpeg.holds_enough(data, header):
            raise UnreadableImageError(
                f"its {len(data)} bytes are too few for the {header.width}x{header.height} pixels of its header"
            )
    if header is None or not header.plain or import_tensorflow() is None:
        pixels = decode(data, channels)
        return resize_image(pixels, choose_view(pixels.shape[0], pixels.shape[1]), size, interpolation)
    view = choose_view(header.height, header.width)
    with _BUDGET.reserve(_JPEG_COST * header.height * header.width):
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
    if len(data) > MAX_BYTES:
        raise UnreadableImageError(f"the file exceeds the limit of {MAX_BYTES} bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.height, image.width)
            _check_tiles(image)
            with _BUDGET.reserve(_PILLOW_COST * image.height * image.width):
                return _upright_pixels(image, "L" if channels == 1 else "RGB")
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"it is none of {', '.join(FORMATS)}") from error
    except _DAMAGE as error:
        raise UnreadableImageError(str(error) or type(error).__name__) from error


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise UnreadableImageError(f"{width}x{height} pixels exceed the limit of {MAX_PIXELS}")
    if height * width == 0:
        raise UnreadableImageError(f"the header says {width}x{height} pixels")


def _check_tiles(image: Image.Image) -> None:
    # A small picture may lie in a corner of a tile of any size, which would be decoded as a whole.
    tags = getattr(image, "tag_v2", {})
    if _TILE_WIDTH in tags and _TILE_LENGTH in tags:
        _check_size(tags[_TILE_LENGTH], tags[_TILE_WIDTH])


def _upright_pixels(image: Image.Image, mode: str) -> np.ndarray:
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    flat = _flatten(image)
    flat = flat if flat.mode == mode else flat.convert(mode)
    return np.asarray(flat).reshape(flat.height, flat.width, len(mode))


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
