"""What the pipeline needs from a data set: the examples of a split, addressed by index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from mim_jax.errors import DataError


class Examples(Protocol):
    """One split of a data set. Either `ArrayExamples` or `EncodedExamples`."""

    name: str  # for messages
    class_names: tuple[str, ...] | None
    num_classes: int | None  # None: unlabelled, or not known without reading everything
    image_shape: tuple[int, int, int] | None  # (H, W, C) where all images share it
    fingerprint: str  # changes when the examples or their order do
    # Where each example is a pair of pictures there is also `partners`, the examples that are the second ones.

    def __len__(self) -> int: ...


class ArrayExamples:
    """Images in memory, uint8 or float32 in [0, 1], `[N, H, W, C]`, with int32 labels `[N]` or None."""

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray | None,
        class_names: tuple[str, ...] | None = None,
    ):
        self.name = name
        self.images = _check_images(name, images)
        self.labels = None if labels is None else _check_labels(name, labels, len(self.images), class_names)
        self.class_names = class_names
        self.image_shape = self.images.shape[1:]
        if self.labels is None:
            self.num_classes = None
        else:
            self.num_classes = len(class_names) if class_names else int(self.labels.max()) + 1
        self.fingerprint = _fingerprint(self.images, self.labels)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def dtype(self) -> np.dtype:
        """uint8, or float32 for values already in [0, 1]."""
        return self.images.dtype

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Images `[n, H, W, C]` and labels int32 `[n]` (or None) at `indices [n]`, as copies."""
        return self.images[indices], None if self.labels is None else self.labels[indices]


class EncodedExamples(Protocol):
    """Images as the bytes of JPEG, PNG, WebP, ... files, read one by one."""

    name: str
    class_names: tuple[str, ...] | None
    num_classes: int | None
    image_shape: tuple[int, int, int] | None
    fingerprint: str
    labelled: bool

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Iterable[tuple[bytes, int | None]]:
        """File contents and labels at `indices`; thread-safe. Raises DataError when the storage fails."""
        ...

    def describe(self, index: int) -> str:
        """Where example `index` is stored, for messages."""
        ...


def text_digest(*parts: str) -> str:
    """A short hash of strings, used as a fingerprint."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def _check_images(name: str, images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise DataError(f"The images of {name} have shape {images.shape}; they must be [N, H, W] or [N, H, W, C].")
    if images.size == 0:
        raise DataError(f"{name} is empty: its images have shape {images.shape}.")
    if images.dtype == np.uint8:
        return images
    if images.dtype == np.uint16:
        return images.astype(np.float32) / np.float32(65535)
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"The images of {name} are {images.dtype}; store uint8, uint16, or floats in [0, 1].")
    low, high = images.min(), images.max()
    if not (low >= 0.0 and high <= 1.0):
        raise DataError(f"The images of {name} hold floats from {low} to {high}; scale them to [0, 1] or store uint8.")
    return images.astype(np.float32)


def _check_labels(name: str, labels: np.ndarray, num_images: int, class_names: tuple[str, ...] | None) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (num_images,):
        raise DataError(f"{name} has {num_images} images but labels of shape {labels.shape}; give one label per image.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"The labels of {name} are {labels.dtype}; they must be integers.")
    bad = (labels < 0) | (labels >= (len(class_names) if class_names else np.iinfo(np.int32).max))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        classes = f"[0, {len(class_names)})" if class_names else "the non-negative 32-bit integers"
        raise DataError(f"Label {labels[first]} of example {first} of {name} lies outside {classes}.")
    return labels.astype(np.int32)


def _fingerprint(images: np.ndarray, labels: np.ndarray | None) -> str:
    digest = hashlib.sha256(f"{images.shape} {images.dtype}".encode())
    sample = np.linspace(0, len(images) - 1, min(len(images), 256)).astype(np.int64)
    digest.update(np.ascontiguousarray(images[sample]).tobytes())
    if labels is not None:
        digest.update(labels.tobytes())
    return digest.hexdigest()[:16]
