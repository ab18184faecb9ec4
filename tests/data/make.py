"""Small configs and image files for the tests of the data floor."""

from __future__ import annotations

import functools
import io
import pathlib
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from sklearn.datasets import load_sample_image

from mim_jax import data


def config(source: str, **changes: object) -> ConfigDict:
    """The keys of a run's config that the data floor reads; keyword arguments change any of them."""
    section = data.default_config()
    own = {name: changes.pop(name) for name in set(changes) & set(section)}
    section.update({"source": source, "num_workers": 2, **own})
    return ConfigDict({**dict(image_size=16, channels=3, batch_size=8, seed=0, data=section), **changes})


@functools.cache
def photo(height: int = 120, width: int = 160) -> np.ndarray:
    """A real photograph, uint8 `[height, width, 3]`."""
    image = Image.fromarray(load_sample_image("china.jpg")).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def encode(pixels: np.ndarray | Image.Image, form: str, **options: object) -> bytes:
    """An image file's content."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def write_folder(root: pathlib.Path, count: int, classes: int = 2, size: int = 20, form: str = "PNG") -> None:
    """`count` images, all different: image i is a flat grey of level 2 i, in the class folder i modulo `classes`."""
    for number in range(count):
        folder = root / f"class{number % classes}" if classes else root
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((size, size, 3), 2 * number, np.uint8)
        (folder / f"{number:04d}.{form.lower()}").write_bytes(encode(pixels, form))


def levels(batch: dict[str, np.ndarray]) -> list[int]:
    """Which of the flat images of `write_folder` are in a batch made with mean 0 and std 1."""
    return np.rint(batch["image"][:, 0, 0, 0] * 255 / 2).astype(int).tolist()


def all_levels(batches: Iterable[dict[str, np.ndarray]]) -> list[int]:
    """The same of several batches, one after the other."""
    return [level for batch in batches for level in levels(batch)]


def photo_folder(root: pathlib.Path, count: int = 12) -> str:
    """Writes `count` JPEGs of three classes; the source that names them."""
    for number in range(count):
        folder = root / f"c{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(encode(photo()[:, 2 * number : 2 * number + 100], "JPEG"))
    return f"folder:{root}"


def png(width: int, height: int, rows: bytes = b"\0", bits: int = 8, colour: int = 2) -> bytes:
    """A PNG file whose header may announce anything; `rows` are its filtered rows, uncompressed."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def png_bomb(side: int) -> bytes:
    """A sound one-bit PNG of `side` x `side` black pixels; a few hundred kB for any size."""
    return png(side, side, bytes((1 + (side + 7) // 8) * side), bits=1, colour=0)


def lying_jpeg(height: int, width: int, **options: object) -> bytes:
    """A JPEG of 40x60 pixels whose header announces other ones."""
    data = bytearray(encode(photo(40, 60), "JPEG", **options))
    at = next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data)
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def tiled_tiff(width: int, height: int, tile: int, pixels: bytes) -> bytes:
    """A grey TIFF in one deflated tile of `tile` x `tile` pixels."""
    body = zlib.compress(pixels, 9)
    body += b"\0" * (len(body) % 2)
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 8, 325: len(body)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + bytes(4)


@functools.cache
def sound_files() -> dict[str, tuple[bytes, np.ndarray]]:
    """Unusual image files by name, each with the picture it shows, uint8 `[H, W, 3]`."""
    picture = photo(40, 60)
    grey = np.repeat(picture[..., :1], 3, axis=2)
    image, levels = Image.fromarray(picture), picture[..., 0].astype(np.uint16) * 257
    half = np.concatenate(
        [picture, np.where(np.arange(40) < 20, 0, 255).astype(np.uint8).repeat(60).reshape(40, 60, 1)], 2
    )
    turned = Image.Exif()
    turned[0x0112] = 6
    palette = image.quantize(64)
    seen = palette.convert("RGB")
    palette.info["transparency"] = 5
    seen.paste((255, 255, 255), mask=Image.fromarray(np.asarray(palette) == 5))
    deep = b"".join(b"\0" + row.astype(">u2").tobytes() for row in picture.astype(np.uint16) * 257)
    frames = dict(save_all=True, append_images=[Image.fromarray(255 - picture)])
    return {
        "plain.jpg": (encode(picture, "JPEG", quality=95), picture),
        "progressive.jpg": (encode(picture, "JPEG", quality=95, progressive=True), picture),
        "cmyk.jpg": (encode(image.convert("CMYK"), "JPEG", quality=95), picture),
        "turned.jpg": (encode(picture, "JPEG", quality=95, exif=turned), np.rot90(picture, 3)),
        "turned.png": (encode(picture, "PNG", exif=turned), np.rot90(picture, 3)),
        "grey16.png": (encode(Image.fromarray(levels), "PNG"), grey),
        "colour16.png": (png(60, 40, deep, bits=16), picture),
        "animated.gif": (encode(image.quantize(256), "GIF", **frames), picture),
        "animated.png": (encode(picture, "PNG", **frames), picture),
        "palette.png": (encode(palette, "PNG"), np.asarray(seen)),
        "transparent.png": (encode(half, "PNG"), np.where(half[..., 3:] == 0, np.uint8(255), picture)),
        "pixel.png": (encode(picture[:1, :1], "PNG"), picture[:1, :1]),
        "thread.png": (encode(np.tile(picture[:10, :50], (1, 400, 1)), "PNG"), np.tile(picture[:10, :50], (1, 400, 1))),
        "tiled.tif": (
            tiled_tiff(16, 16, 16, bytes(range(256))),
            np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2),
        ),
    }


@functools.cache
def unreadable_files() -> dict[str, bytes]:
    """Image files by name that no one can or should decode."""
    picture = photo(40, 60)
    corrupt = bytearray(encode(picture, "PNG"))
    corrupt[len(corrupt) // 2] ^= 255
    progressive = encode(picture, "JPEG", progressive=True)
    return {
        "corrupt.png": bytes(corrupt),
        "truncated.jpg": encode(picture, "JPEG")[:600],
        "progressive.jpg": progressive[: len(progressive) // 2],
        "truncated.png": encode(picture, "PNG")[:500],
        "empty.jpg": b"",
        "text.jpg": b"This is not an image.\n",
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n",
        "announced.png": png(60000, 60000),
        "bomb.png": png_bomb(30000),
        "smaller-bomb.png": png_bomb(13000),  # Pillow itself would only warn
        "tile-bomb.tif": tiled_tiff(16, 16, 12000, bytes(12000**2)),
        "announced.jpg": lying_jpeg(60000, 60000),
        "stretched.jpg": lying_jpeg(9400, 9400),
        "stretched-progressive.jpg": lying_jpeg(9400, 9400, progressive=True),
    }
