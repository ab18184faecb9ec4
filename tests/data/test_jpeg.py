"""Partial decoding of JPEGs equals full decoding."""

import io

import numpy as np
import pytest
from PIL import Image

from mim_jax.data import jpeg
from mim_jax.data.decode import decode, decode_resized
from mim_jax.data.geometry import View, center_crop, random_window
from mim_jax.data.resize import resize_image
from tests.data.make import encode, photo

KINDS = {
    "4:2:0": dict(subsampling=2),
    "4:2:2": dict(subsampling=1),
    "4:4:4": dict(subsampling=0),
    "progressive": dict(progressive=True, optimize=True),
}


def with_exif(orientation: int, byte_order: str = "II") -> bytes:
    exif = Image.Exif()
    exif.endian = "<" if byte_order == "II" else ">"
    exif[0x010E] = "a description before the tag"
    exif[0x0112] = orientation
    return encode(photo(), "JPEG", exif=exif)


def test_header():
    assert jpeg.read_header(encode(photo(30, 50), "JPEG")) == jpeg.JpegHeader(30, 50, 3, 8, 1, True)
    assert jpeg.read_header(encode(photo()[..., 0], "JPEG")).components == 1
    assert jpeg.read_header(encode(Image.fromarray(photo()).convert("CMYK"), "JPEG")).components == 4
    assert jpeg.read_header(encode(photo(), "JPEG", progressive=True)).plain


@pytest.mark.parametrize("byte_order", ["II", "MM"])
def test_orientation(byte_order):
    header = jpeg.read_header(with_exif(6, byte_order))
    assert header.orientation == 6 and not header.plain
    assert jpeg.read_header(with_exif(1, byte_order)).plain


def test_garbled_headers_are_refused_or_taken_as_upright():
    data = encode(photo(), "JPEG")
    assert jpeg.read_header(b"") is None
    assert jpeg.read_header(data[:20]) is None
    assert jpeg.read_header(b"\xff\xd8garbage") is None
    garbled = with_exif(6).replace(b"II*\0", b"II*\xff", 1).replace(b"\x08\0\0\0", b"\xff\xff\xff\x7f", 1)
    assert jpeg.read_header(garbled).orientation == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_equals_that_part_of_the_whole(kind):
    data = encode(photo(121, 163), "JPEG", quality=85, **KINDS[kind])
    whole, header = np.asarray(Image.open(io.BytesIO(data))), jpeg.read_header(data)
    rng = np.random.default_rng(0)
    for _ in range(25):
        top, left = int(rng.integers(0, 100)), int(rng.integers(0, 140))
        region = (top, left, int(rng.integers(top + 1, 122)), int(rng.integers(left + 1, 164)))
        view = View(tuple(map(float, region)), region)
        pixels, shifted = jpeg.decode_view(data, header, view, (32, 32), 3, "bicubic")
        np.testing.assert_array_equal(pixels, whole[region[0] : region[2], region[1] : region[3]])
        assert shifted.box == (0.0, 0.0, region[2] - region[0], region[3] - region[1])


def test_a_centre_crop_decodes_only_what_its_filter_reaches():
    data = encode(photo(120, 400), "JPEG", quality=85)
    whole, header = np.asarray(Image.open(io.BytesIO(data))), jpeg.read_header(data)
    view = center_crop(120, 400, (56, 56), 64)
    pixels, shifted = jpeg.decode_view(data, header, view, (56, 56), 3, "bicubic")
    assert pixels.shape[1] < 150
    top, left = round(view.box[0] - shifted.box[0]), round(view.box[1] - shifted.box[1])
    np.testing.assert_array_equal(pixels, whole[top : top + pixels.shape[0], left : left + pixels.shape[1]])


@pytest.mark.parametrize("draws", [(0.0, 0.0), (0.99, 0.99), (0.4, 0.6)])
def test_a_window_that_reaches_over_the_border_is_mirrored_all_the_same(draws):
    data = encode(photo(120, 160), "JPEG", quality=85)
    view = random_window(120, 160, draws, (56, 56), 60, 6)
    expected = resize_image(decode(data, 3), view, (56, 56), "bicubic")
    actual = decode_resized(data, lambda height, width: view, (56, 56), 3, "bicubic")
    np.testing.assert_array_equal(actual, expected)
    assert (view.shift != (0, 0)) == (draws != (0.4, 0.6))


def test_a_grey_jpeg_gives_the_channels_asked_for():
    data = encode(photo()[..., 1], "JPEG")
    header = jpeg.read_header(data)
    view = View((0.0, 0.0, 120.0, 160.0), (0, 0, 120, 160))
    colour, _ = jpeg.decode_view(data, header, view, (8, 8), 3, "bicubic")
    grey, _ = jpeg.decode_view(data, header, view, (8, 8), 1, "bicubic")
    np.testing.assert_array_equal(colour, np.repeat(grey, 3, axis=2))


def test_a_truncated_file_is_an_error():
    data = encode(photo(), "JPEG")
    view = View((0.0, 0.0, 120.0, 160.0), (0, 0, 120, 160))
    with pytest.raises(jpeg.CorruptJpegError):
        jpeg.decode_view(data[: len(data) // 2], jpeg.read_header(data), view, (8, 8), 3, "bicubic")
