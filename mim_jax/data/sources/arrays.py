"""Arrays on disk: NumPy `.npz` archives and the IDX files of the MNIST family."""

from __future__ import annotations

import contextlib
import gzip
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mim_jax.data.memory import check_fits
from mim_jax.data.retry import read_with_retries
from mim_jax.data.sources.examples import ArrayExamples
from mim_jax.errors import DataError

_IMAGE_NAMES = ("image", "images", "x")
_LABEL_NAMES = ("label", "labels", "y")
_SPLIT_NAMES = ("train", "validation", "val", "valid", "test", "eval")
_IDX_DTYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_MAX_DEFLATE = 1032  # times its size to which deflated data may grow
_DAMAGE = (OSError, EOFError, ValueError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)
_IDX_FILE_NAMES = {"train": ("train",), "test": ("t10k", "test")}


class NpzDataset:
    """`npz:FILE`: arrays `image` and `label` (one split, "train"), or `train_image`, `x_test`, ... (a split each)."""

    def __init__(self, path: str):
        self.name = f"npz:{path}"
        self._path = Path(path).expanduser()
        if not self._path.is_file():
            raise DataError(f"There is no file {self._path}; data.source must name an existing .npz archive.")
        with _archive(self._path) as archive:
            names = archive.files
        self._keys = {
            split: (image, _find(names, _LABEL_NAMES, prefix))
            for split, prefix in [("train", ""), *((name, name) for name in _SPLIT_NAMES)]
            if (image := _find(names, _IMAGE_NAMES, prefix))
        }
        if not self._keys:
            raise DataError(
                f"{self._path} holds the arrays {names}, none of which is called image, train_image or x_train; rename "
                "them."
            )
        self.splits = tuple(self._keys)

    def open(self, split: str) -> ArrayExamples:
        """The examples of `split`, loaded into memory."""
        image_key, label_key = self._keys[split]
        with _archive(self._path) as archive:
            sizes = {member.filename.removesuffix(".npy"): member.file_size for member in archive.zip.infolist()}
            check_fits(sizes[image_key] + (sizes[label_key] if label_key else 0), str(self._path))
            try:
                images = archive[image_key]
                labels = archive[label_key] if label_key else None
            except _DAMAGE as error:
                raise DataError(f"The arrays of {self._path} cannot be read: {error}.") from error
        return ArrayExamples(f"{self.name} ({split})", images, labels)


class IdxDataset:
    """`idx:DIR` or `idx:PREFIX`: `train-images-idx3-ubyte[.gz]`, `t10k-labels-idx1-ubyte[.gz]` and the like."""

    def __init__(self, location: str):
        self.name = f"idx:{location}"
        path = Path(location).expanduser()
        self._folder, self._prefix = (path, "") if path.is_dir() else (path.parent, path.name.rstrip("-") + "-")
        self._images = {split: file for split in _IDX_FILE_NAMES if (file := self._file(split, "images"))}
        self.splits = tuple(self._images)
        if not self.splits:
            raise DataError(
                f"There is no {self._prefix}train-images-idx3-ubyte or {self._prefix}t10k-images-idx3-ubyte (.gz or "
                f"not) in {self._folder}; data.source must name the folder or prefix of IDX files."
            )

    def open(self, split: str) -> ArrayExamples:
        """The examples of `split`, loaded into memory."""
        labels = self._file(split, "labels")
        return ArrayExamples(
            f"{self.name} ({split})", read_idx(self._images[split]), None if labels is None else read_idx(labels)
        )

    def _file(self, split: str, kind: str) -> Path | None:
        for name in _IDX_FILE_NAMES[split]:
            for path in sorted(self._folder.glob(f"{self._prefix}{name}-{kind}[-.]idx?-ubyte*")):
                if path.suffix in ("", ".gz") or path.name.endswith("-ubyte"):
                    return path
        return None


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file, gzipped or not (format: LeCun, The MNIST database).

    Raises:
      DataError: the file is missing, damaged, not IDX, or larger than the memory.
    """
    return read_with_retries(lambda: _read_idx(path), str(path))


def _read_idx(path: Path) -> np.ndarray:
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            start = file.read(4)
            sizes = file.read(4 * start[3]) if len(start) == 4 else b""
            if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _IDX_DTYPES or len(sizes) < 4 * start[3]:
                raise DataError(f"{path} is not an IDX file: it starts with {start.hex()!r}.")
            shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
            dtype = np.dtype(_IDX_DTYPES[start[2]])
            announced = math.prod(shape) * dtype.itemsize
            if announced > path.stat().st_size * (_MAX_DEFLATE if packed else 1):
                raise DataError(f"{path} announces an array of shape {shape}, which it is too short to hold.")
            check_fits(announced, str(path))
            body = file.read(announced + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}; fetch it again.") from error
    if len(body) != announced:
        held = "more" if len(body) > announced else f"{len(body)} bytes"
        raise DataError(f"{path} announces an array of shape {shape} but holds {held}; fetch it again.")
    return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="))


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    with read_with_retries(lambda: path.open("rb"), str(path)) as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except _DAMAGE as error:
            raise DataError(f"{path} is not a readable .npz archive: {error}.") from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is a single array; save images and labels together with numpy.savez.")
        yield archive


def _find(names: list[str], candidates: tuple[str, ...], split: str) -> str | None:
    """The first of `names` that is a candidate alone, or joined with `split` before or after it."""
    for candidate in candidates:
        for name in (f"{split}_{candidate}", f"{candidate}_{split}") if split else (candidate,):
            if name in names:
                return name
    return None
