"""Loading of chunks of examples into preallocated arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from mim_jax.data.bad_images import BadImages
from mim_jax.data.decode import UnreadableImageError, decode_resized
from mim_jax.data.geometry import View, whole
from mim_jax.data.resize import resize_batch, resize_image
from mim_jax.data.sources import ArrayExamples, EncodedExamples
from mim_jax.data.transform import Transform
from mim_jax.errors import DataError

Batch = dict[str, np.ndarray]
# Given a position and the attempt's number, another example to show instead of an unreadable one.
Replace = Callable[[int, int], int]

MAX_REPLACEMENTS = 20
SMALL_IMAGE = 64 * 64  # pixels up to which images are resized by batched matrix products rather than by Pillow


class Loader(Protocol):
    """Fills a chunk of a batch. `chunk` is how many examples are best loaded by one call."""

    chunk: int

    def fill(self, positions: np.ndarray, indices: np.ndarray, out: Batch) -> None:
        """Writes the examples `indices [n]`, transformed as positions `[n]` demand, to the arrays of `out`."""
        ...


class ArrayLoader:
    """Examples in memory."""

    def __init__(self, examples: ArrayExamples, transform: Transform):
        self._examples, self._transform = examples, transform
        self._small = examples.image_shape[0] * examples.image_shape[1] <= SMALL_IMAGE
        self.chunk = 256 if self._small else 8

    def fill(self, positions: np.ndarray, indices: np.ndarray, out: Batch) -> None:
        """See `Loader`."""
        transform = self._transform
        pixels, labels = self._examples.gather(indices)
        if "label" in out:
            out["label"][:] = labels
        height, width = pixels.shape[1:3]
        draws = transform.draws(positions)
        rows = [None] * len(positions) if draws is None else draws.tolist()
        views = [transform.view(height, width, row) for row in rows]
        if (height, width) != transform.size or any(view != whole(height, width) for view in views):
            pixels = self._resize(pixels, views)
        transform.finish(pixels, positions, out["image"])

    def _resize(self, pixels: np.ndarray, views: list[View]) -> np.ndarray:
        size, interpolation = self._transform.size, self._transform.interpolation
        if self._small:
            return resize_batch(pixels, views, size, interpolation)
        resized = [resize_image(image, view, size, interpolation) for image, view in zip(pixels, views, strict=True)]
        return np.stack(resized)


class EncodedLoader:
    """Examples that are image files. An unreadable one is replaced, or where there is no `replace` marked invalid."""

    chunk = 8

    def __init__(self, examples: EncodedExamples, transform: Transform, bad: BadImages, replace: Replace | None):
        self._examples, self._transform = examples, transform
        self._bad, self._replace = bad, replace

    def fill(self, positions: np.ndarray, indices: np.ndarray, out: Batch) -> None:
        """See `Loader`."""
        transform = self._transform
        pixels = np.zeros((len(positions), *transform.size, transform.channels), np.uint8)
        draws = transform.draws(positions)
        records = self._examples.read(indices.tolist())
        unreadable = []
        for slot, (position, record) in enumerate(zip(positions.tolist(), records, strict=True)):
            row = None if draws is None else draws[slot].tolist()
            label = self._load(position, int(indices[slot]), record, row, pixels[slot])
            if label is None:
                unreadable.append(slot)
            elif "label" in out:
                out["label"][slot] = label
        transform.finish(pixels, positions, out["image"])
        for slot in unreadable:
            out["image"][slot] = 0.0
            out["valid"][slot] = False

    def _load(
        self,
        position: int,
        index: int,
        record: tuple[bytes, int | None],
        draws: list[float] | None,
        out: np.ndarray,
    ) -> int | None:
        """Decodes one example into `out`; its label (-1: unlabelled), or None if unreadable and not replaced."""
        for attempt in range(MAX_REPLACEMENTS):
            data, label = record
            try:
                out[:] = self._decode(data, draws)
            except UnreadableImageError as error:
                self._bad.bad(self._examples.describe(index), str(error))
            else:
                self._bad.good()
                return self._check_label(label, index)
            if self._replace is None:
                return None
            index = self._replace(position, attempt)
            (record,) = self._examples.read([index])
        self._bad.fail()

    def _decode(self, data: bytes, draws: list[float] | None) -> np.ndarray:
        transform = self._transform
        return decode_resized(
            data,
            lambda height, width: transform.view(height, width, draws),
            transform.size,
            transform.channels,
            transform.interpolation,
        )

    def _check_label(self, label: int | None, index: int) -> int:
        if label is None:
            return -1
        classes = self._examples.num_classes
        if classes is not None and not 0 <= label < classes:
            raise DataError(
                f"Label {label} of {self._examples.describe(index)} lies outside [0, {classes}); choose a labelled "
                "split."
            )
        return label
