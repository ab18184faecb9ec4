"""A folder of image files, with one sub-folder per class or with no labels at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mim_jax.data.decode import MAX_BYTES
from mim_jax.data.retry import read_with_retries
from mim_jax.data.sources.examples import text_digest
from mim_jax.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
_SPLIT_NAMES = ("train", "validation", "val", "valid", "test", "eval")


class FolderExamples:
    """The image files under one folder, sorted by path; the first sub-folder of a path is its class."""

    image_shape = None

    def __init__(self, root: Path, files: Sequence[str], class_names: tuple[str, ...] | None):
        self.name = f"folder:{root}"
        self.class_names = class_names
        self.num_classes = len(class_names) if class_names else None
        self.labelled = class_names is not None
        self.fingerprint = text_digest(*files)
        self._root, self._files = root, files
        if class_names:
            numbers = {name: number for number, name in enumerate(class_names)}
            unknown = sorted({_class_of(file) for file in files} - numbers.keys())
            if unknown:
                raise DataError(f"{root} has the class folder {unknown[0]!r}, which the training split lacks.")
            self._labels = np.array([numbers[_class_of(file)] for file in files], np.int32)

    def __len__(self) -> int:
        return len(self._files)

    def describe(self, index: int) -> str:
        """The file's path."""
        return os.path.join(self._root, self._files[index])

    def read(self, indices: Sequence[int]) -> Iterator[tuple[bytes, int | None]]:
        """Contents and labels of the files at `indices`, each read when it is asked for.

        Of a file larger than any image may be, one byte too much is read, which is enough to refuse it.

        Raises:
          DataError: a file cannot be read, after several attempts.
        """
        for index in indices:
            path = self.describe(index)
            content = read_with_retries(lambda path=path: _read_regular(path), path)
            yield content, int(self._labels[index]) if self.labelled else None


def _read_regular(path: str) -> bytes:
    # Without blocking: opening a pipe would wait for ever for its writer.
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path} is not a regular file; remove it from the data set.")
        return file.read(min(status.st_size, MAX_BYTES) + 1)


class FolderDataset:
    """`folder:DIR`: `DIR/<split>/<class>/*.jpg`, `DIR/<class>/*.jpg` or just `DIR/*.jpg` (one split, "train").

    Sub-folders may be nested deeper; links are followed, hidden files skipped. A folder with images directly inside
    it is unlabelled.
    """

    def __init__(self, root: str, train_split: str):
        self.name = f"folder:{root}"
        self._root = Path(root).expanduser()
        self._train_split = train_split
        self._listings: dict[str, tuple[str, ...]] = {}
        if not self._root.is_dir():
            raise DataError(f"There is no folder {self._root}; data.source must name an existing folder of images.")
        found = [name for name in _SPLIT_NAMES if (self._root / name).is_dir()]
        if (self._root / train_split).is_dir() and train_split not in found:
            found.append(train_split)
        self._nested = bool(found)
        self.splits = tuple(found) or ("train",)

    def open(self, split: str) -> FolderExamples:
        """The examples of `split`; the classes are those of the training split, where it is labelled."""
        files = self._files(split)
        classes = _classes(files)
        if classes and split != self._train_split and self._train_split in self.splits:
            classes = _classes(self._files(self._train_split)) or classes
        return FolderExamples(self._folder(split), files, classes)

    def _folder(self, split: str) -> Path:
        return self._root / split if self._nested else self._root

    def _files(self, split: str) -> tuple[str, ...]:
        if split not in self._listings:
            folder = self._folder(split)
            self._listings[split] = read_with_retries(lambda: tuple(sorted(_image_files(folder))), str(folder))
            if not self._listings[split]:
                raise DataError(f"{folder} holds no image; looked for files ending in {', '.join(EXTENSIONS)}.")
        return self._listings[split]


def _image_files(root: Path) -> Iterator[str]:
    """Paths relative to `root` of all image files below it; a folder reached twice through links is visited once.

    Raises:
      OSError: a folder cannot be listed. Without its images the others would have other numbers.
    """
    visited = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        inner = os.path.relpath(folder, root)
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield name if inner == "." else os.path.join(inner, name)


def _raise(error: OSError) -> None:
    raise error


def _class_of(file: str) -> str:
    return file.split(os.sep, 1)[0]


def _classes(files: Sequence[str]) -> tuple[str, ...] | None:
    if any(os.sep not in file for file in files):
        return None
    return tuple(sorted({_class_of(file) for file in files}))
