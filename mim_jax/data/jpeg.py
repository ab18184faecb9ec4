"""Plain JPEGs: a header parser, and decoding of just the part of the picture that a crop needs."""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import numpy as np

from mim_jax.data.geometry import View
from mim_jax.data.lazy_tensorflow import import_tensorflow
from mim_jax.data.resize import filter_reach

_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN_MARKERS = frozenset((0xC0, 0xC1, 0xC2))
_STANDALONE_MARKERS = frozenset(range(0xD0, 0xD8)) | {0x01}
_ORIENTATION_TAG = 0x0112
# Chroma upsampling looks at neighbours, so pixels at the border of a partial decode are only right this far inside.
_MARGIN = 4


class CorruptJpegError(ValueError):
    """The compressed data cannot be decoded; the message says why."""


class JpegHeader(NamedTuple):
    """What the header of a JPEG file says about its picture."""

    height: int
    width: int
    components: int  # 1: grey, 3: colour, 4: CMYK
    bits: int
    orientation: int  # EXIF, 1: upright
    huffman: bool  # else coded arithmetically, or without loss

    @property
    def plain(self) -> bool:
        """Whether the fused decoder shows the picture as a viewer does."""
        return self.components in (1, 3) and self.bits == 8 and self.orientation == 1


def read_header(data: bytes) -> JpegHeader | None:
    """Size, components and EXIF orientation of a JPEG file; None where the header is not understood."""
    orientation, at = 1, 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF or marker in _STANDALONE_MARKERS:
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _FRAME_MARKERS:
            if at + 10 > len(data):
                return None
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            return JpegHeader(height, width, components, bits, orientation, marker in _HUFFMAN_MARKERS)
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[at + 10 : at + 2 + length])
        if marker == 0xDA or length < 2:
            return None
        at += 2 + length
    return None


def holds_enough(data: bytes, header: JpegHeader) -> bool:
    """Whether the file is long enough for its picture: a Huffman code takes at least one bit for each 8x8 block.

    The decoder itself only warns where the data ends before the picture does, and leaves the rest grey.
    """
    blocks = math.ceil(header.height / 8) * math.ceil(header.width / 8)
    return not header.huffman or 8 * len(data) >= blocks


def decode_view(
    data: bytes, header: JpegHeader, view: View, size: tuple[int, int], channels: int, interpolation: str
) -> tuple[np.ndarray, View]:
    """Decodes the part of a plain JPEG that `view`, resized to `size`, can depend on.

    Returns:
      uint8 pixels `[h, w, channels]`, equal to that part of the fully decoded picture, and `view` in their coordinates.

    Raises:
      CorruptJpegError: the compressed data is damaged or ends early.
    """
    top, left, bottom, right = view.region
    reach_y = math.ceil(filter_reach(view.box[2] - view.box[0], size[0], interpolation)) + 1
    reach_x = math.ceil(filter_reach(view.box[3] - view.box[1], size[1], interpolation)) + 1
    top, left = max(top, math.floor(view.box[0]) - reach_y), max(left, math.floor(view.box[1]) - reach_x)
    bottom, right = min(bottom, math.ceil(view.box[2]) + reach_y), min(right, math.ceil(view.box[3]) + reach_x)
    pixels = _decode_region(data, header, (top, left, bottom, right), channels)
    box = (view.box[0] - top, view.box[1] - left, view.box[2] - top, view.box[3] - left)
    return pixels, View(box, (0, 0, bottom - top, right - left), view.shift)


def _decode_region(data: bytes, header: JpegHeader, region: tuple[int, int, int, int], channels: int) -> np.ndarray:
    top, left, bottom, right = region
    outer_top, outer_left = max(0, top - _MARGIN), max(0, left - _MARGIN)
    outer_bottom, outer_right = min(header.height, bottom + _MARGIN), min(header.width, right + _MARGIN)
    tf = import_tensorflow()
    try:
        pixels = tf.raw_ops.DecodeAndCropJpeg(
            contents=data,
            crop_window=(outer_top, outer_left, outer_bottom - outer_top, outer_right - outer_left),
            channels=channels,
            dct_method="INTEGER_ACCURATE",
        ).numpy()
    except tf.errors.InvalidArgumentError as error:
        # Without the address of the operation before it and its name behind it.
        reason = str(error.message).splitlines()[0].rpartition("}} ")[2].partition(" [Op:")[0]
        raise CorruptJpegError(reason) from error
    return pixels[top - outer_top : bottom - outer_top, left - outer_left : right - outer_left]


def _exif_orientation(tiff: bytes) -> int:
    """The orientation tag of the first directory of an EXIF block; 1 (upright) where there is none or it is garbled."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    (directory,) = struct.unpack_from(order + "I", tiff, 4)
    if directory + 2 > len(tiff):
        return 1
    (entries,) = struct.unpack_from(order + "H", tiff, directory)
    for entry in range(directory + 2, min(directory + 2 + 12 * entries, len(tiff) - 11), 12):
        tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
        if tag == _ORIENTATION_TAG:
            return value
    return 1
