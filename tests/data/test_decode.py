"""Every kind of image file comes out as the picture a viewer shows."""

import functools

import numpy as np
import pytest
from PIL import Image

from mim_jax.data import decode as decode_module
from mim_jax.data.decode import UnreadableImageError, decode, decode_resized
from mim_jax.data.geometry import random_resized_crop, whole
from tests.data.make import encode, photo, png

PHOTO = photo(40, 60)


def shown(data: bytes, channels: int = 3) -> np.ndarray:
    """The whole picture through the function the pipeline uses."""
    size = {}

    def choose(height, width):
        size["of"] = (height, width)
        return whole(height, width)

    decode_resized(data, choose, (8, 8), channels, "bicubic")
    return decode_resized(data, whole, size["of"], channels, "bicubic")


def close(found: np.ndarray, expected: np.ndarray, level: float = 12.0) -> None:
    assert found.shape == expected.shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).mean() < level


@pytest.mark.parametrize(
    ("form", "options"),
    [("JPEG", dict(quality=95)), ("PNG", {}), ("WEBP", dict(quality=95)), ("BMP", {}), ("TIFF", {}), ("PPM", {})],
)
def test_colour(form, options):
    close(shown(encode(PHOTO, form, **options)), PHOTO, 5.0)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_grey_is_repeated(form):
    found = shown(encode(PHOTO[..., 0], form))
    close(found, np.repeat(PHOTO[..., :1], 3, axis=2), 5.0)


def test_colour_as_luminance():
    expected = np.asarray(Image.fromarray(PHOTO).convert("L"))[..., None]
    for form in ("JPEG", "PNG"):
        close(shown(encode(PHOTO, form), channels=1), expected, 5.0)


def test_palette():
    image = Image.fromarray(PHOTO).quantize(64)
    for form in ("PNG", "GIF"):
        np.testing.assert_array_equal(shown(encode(image, form)), np.asarray(image.convert("RGB")))


def test_one_bit():
    image = Image.fromarray(PHOTO[..., 0] > 100)
    assert set(np.unique(shown(encode(image, "PNG")))) == {0, 255}


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparent_pixels_are_white(form):
    alpha = np.full((40, 60, 1), 255, np.uint8)
    alpha[:20], alpha[20:30] = 0, 128
    found = shown(encode(np.concatenate([PHOTO, alpha], axis=2), form, lossless=True))
    assert (found[:20] == 255).all()
    close(found[20:30], (PHOTO[20:30].astype(int) + 255) // 2, 2.0)
    np.testing.assert_array_equal(found[30:], PHOTO[30:])


def test_transparent_palette_and_grey():
    image = Image.new("P", (10, 10), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.putpixel((3, 3), 0)
    found = shown(encode(image, "PNG", transparency=0))
    assert found[3, 3].tolist() == [255, 255, 255] and found[0, 0].tolist() == [200, 10, 10]
    grey = Image.merge("LA", (Image.new("L", (4, 4), 50), Image.new("L", (4, 4), 0)))
    assert (shown(encode(grey, "PNG")) == 255).all()


def test_cmyk():
    close(shown(encode(Image.fromarray(PHOTO).convert("CMYK"), "JPEG", quality=95)), PHOTO)


def test_sixteen_bits():
    levels = (PHOTO[..., 0].astype(np.uint16)) * 257
    found = shown(encode(Image.fromarray(levels), "PNG"))
    np.testing.assert_array_equal(found, np.repeat(PHOTO[..., :1], 3, axis=2))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation(form, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = dict(quality=95) if form != "PNG" else {}
    found = shown(encode(PHOTO, form, exif=exif, **options))
    close(found, np.rot90(PHOTO, turns), 5.0)


def test_the_first_frame_of_an_animation():
    frames = [Image.fromarray(PHOTO), Image.fromarray(255 - PHOTO)]
    for form in ("WEBP", "GIF", "PNG"):
        close(shown(encode(frames[0], form, save_all=True, append_images=frames[1:])), PHOTO)


def test_a_single_pixel_and_a_thread():
    assert shown(encode(PHOTO[:1, :1], "PNG")).shape == (1, 1, 3)
    thread = encode(PHOTO[:1].repeat(100, axis=1), "JPEG")
    choose = functools.partial(random_resized_crop, draws=[0.5] * 40, scale=(0.2, 1.0), ratio=(0.75, 4 / 3))
    assert decode_resized(thread, choose, (16, 16), 3, "bicubic").shape == (16, 16, 3)


def test_the_fused_path_and_pillow_agree_bit_for_bit(monkeypatch):
    data = encode(photo(150, 200), "JPEG", quality=85)
    choose = functools.partial(random_resized_crop, draws=[0.3] * 40, scale=(0.2, 1.0), ratio=(0.75, 4 / 3))
    fused = decode_resized(data, choose, (48, 48), 3, "bicubic")
    monkeypatch.setattr(decode_module, "import_tensorflow", lambda: None)
    np.testing.assert_array_equal(decode_resized(data, choose, (48, 48), 3, "bicubic"), fused)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "it is none of JPEG, PNG"),
        (encode(PHOTO, "PNG")[:500], "."),
        (encode(PHOTO, "JPEG")[:500], "."),
        (encode(PHOTO, "JPEG")[:40], "."),
        (encode(PHOTO, "WEBP")[:200], "."),
        (encode(PHOTO, "PNG").replace(b"IDAT", b"IDAX"), "."),
        (png(20000, 20000), "exceed"),
        (png(10000, 9000), "exceed"),
        (encode(Image.fromarray(PHOTO[..., 0].astype(np.float32)), "TIFF"), "floating-point"),
    ],
    ids=["empty", "text", "cut-png", "cut-jpeg", "cut-header", "cut-webp", "no-data", "bomb", "large", "float"],
)
def test_unreadable(data, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        decode_resized(data, whole, (8, 8), 3, "bicubic")


def test_a_jpeg_that_claims_to_be_huge():
    data = bytearray(encode(PHOTO, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = (60000).to_bytes(2, "big") * 2
    with pytest.raises(UnreadableImageError, match="60000x60000 pixels exceed"):
        decode_resized(bytes(data), whole, (8, 8), 3, "bicubic")


def test_flipping_any_byte_never_escapes():
    rng = np.random.default_rng(0)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"):
        good = encode(PHOTO, form)
        for _ in range(60):
            data = bytearray(good)
            data[rng.integers(len(data))] = rng.integers(256)
            try:
                assert decode(bytes(data), 3).ndim == 3
            except UnreadableImageError:
                continue
