"""Small configs and image files for the tests of the data floor."""

from __future__ import annotations

import functools
import io
import pathlib
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
