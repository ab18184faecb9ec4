"""Loading of chunks of examples into preallocated arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from mim_jax.data import geometry
from mim_jax.data.bad_images import BadImages
from mim_jax.data.decode import UnreadableImageError, decode_resized
from mim_jax.data.resize import resize_batch, resize_image
from mim_jax.data.sources import ArrayExamples, EncodedExamples
from mim_jax.data.stored_features import StoredFeatures
from mim_jax.data.transform import Transform
from mim_jax.data.views import EXAMPLE, PARTNER, BatchView
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
        """Writes the examples `indices [n]`, transformed as positions `[n]` demand, to the arrays of `out`.

        `out["index"]`, where there is one, holds `indices`; examples shown in the place of others are put right there.
        """
        ...


class ArrayLoader:
    """Examples in memory."""

    def __init__(self, examples: ArrayExamples, views: Sequence[BatchView]):
        self._examples, self._views = examples, views
        self.chunk = 256 if _is_small(examples.image_shape) else 8

    def fill(self, positions: np.ndarray, indices: np.ndarray, out: Batch) -> None:
        """See `Loader`."""
        pixels, labels = self._examples.gather(indices)
        if "label" in out:
            out["label"][:] = labels
        pictures = {EXAMPLE: pixels}
        if any(view.of == PARTNER for view in self._views):
            pictures[PARTNER], _ = self._examples.partners.gather(indices)
        for view in self._views:
            if view.transform is not None:
                pictures[view.name] = cut_batch(pictures[view.of], view.transform, positions)
        finish_views(self._views, pictures, positions, out)


class EncodedLoader:
    """Examples that are image files. An unreadable one is replaced, or where there is no `replace` marked invalid."""

    chunk = 8

    def __init__(self, examples: EncodedExamples, views: Sequence[BatchView], bad: BadImages, replace: Replace | None):
        self._examples, self._views = examples, views
        self._bad, self._replace = bad, replace
        # What is cut out of a file; views of views follow when all files are decoded.
        self._decoded = [view for view in views if view.of in (EXAMPLE, PARTNER)]
        self._sources = {EXAMPLE: examples}
        if any(view.of == PARTNER for view in views):
            self._sources[PARTNER] = examples.partners

    def fill(self, positions: np.ndarray, indices: np.ndarray, out: Batch) -> None:
        """See `Loader`."""
        pictures, draws = {}, {}
        for name, _, transform in self._decoded:
            pictures[name] = np.zeros((len(positions), *transform.size, transform.channels), np.uint8)
            draws[name] = transform.draws(positions)
        records = self._read(indices.tolist())
        unreadable = []
        for slot, (position, record) in enumerate(zip(positions.tolist(), records, strict=True)):
            rows = {name: None if found is None else found[slot].tolist() for name, found in draws.items()}
            found = self._load(position, int(indices[slot]), record, rows, {n: p[slot] for n, p in pictures.items()})
            if found is None:
                unreadable.append(slot)
                continue
            for name, value in zip(("index", "label"), found, strict=True):
                if name in out:
                    out[name][slot] = value
        for view in self._views:
            if view.name not in pictures and view.transform is not None:
                pictures[view.name] = cut_batch(pictures[view.of], view.transform, positions)
        finish_views(self._views, pictures, positions, out)
        for slot in unreadable:
            for view in self._views:
                out[view.name][slot] = 0.0
            out["valid"][slot] = False

    def _read(self, indices: list[int]) -> list[dict[str, tuple[bytes, int | None]]]:
        """The files of each example, by source, with its label."""
        found = {name: self._sources[name].read(indices) for name in self._sources}
        return (dict(zip(found, record, strict=True)) for record in zip(*found.values(), strict=True))

    def _load(
        self,
        position: int,
        index: int,
        record: dict[str, tuple[bytes, int | None]],
        draws: dict[str, list[float] | None],
        out: dict[str, np.ndarray],
    ) -> tuple[int, int] | None:
        """Decodes one example, or one in its place, into `out`; its number and label (-1: unlabelled), or None."""
        for attempt in range(MAX_REPLACEMENTS):
            if self._decode(index, record, draws, out):
                self._bad.good()
                return index, self._check_label(record[EXAMPLE][1], index)
            if self._replace is None:
                return None
            index = self._replace(position, attempt)
            (record,) = self._read([index])
        self._bad.fail()

    def _decode(
        self,
        index: int,
        record: dict[str, tuple[bytes, int | None]],
        draws: dict[str, list[float] | None],
        out: dict[str, np.ndarray],
    ) -> bool:
        """Whether all files of an example could be decoded."""
        for name, source, transform in self._decoded:
            try:
                out[name][:] = _decode_cut(record[source][0], transform, draws[name])
            except UnreadableImageError as error:
                self._bad.bad(self._sources[source].describe(index), str(error))
                return False
        return True

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


class FeatureLoader:
    """What another loader loads, and what is stored of the same examples."""

    def __init__(self, loader: Loader, stored: StoredFeatures):
        self._loader, self._stored = loader, stored
        self.chunk = loader.chunk

    def fill(self, positions: np.ndarray, indices: np.ndarray, out: Batch) -> None:
        """See `Loader`; `out` has an `index` and the arrays of `StoredFeatures.allocate`."""
        pictures = {name: array for name, array in out.items() if name not in self._stored.arrays}
        self._loader.fill(positions, indices, pictures)
        self._stored.fill(out["index"], out)


def _decode_cut(data: bytes, transform: Transform, draws: list[float] | None) -> np.ndarray:
    return decode_resized(
        data,
        lambda height, width: transform.view(height, width, draws),
        transform.size,
        transform.channels,
        transform.interpolation,
    )


def cut_batch(pixels: np.ndarray, transform: Transform, positions: np.ndarray) -> np.ndarray:
    """What `transform` shows of `pixels [n, H, W, C]` at `positions [n]`, resized; `pixels` itself if all of it."""
    height, width = pixels.shape[1:3]
    draws = transform.draws(positions)
    rows = [None] * len(positions) if draws is None else draws.tolist()
    views = [transform.view(height, width, row) for row in rows]
    if (height, width) == transform.size and all(view == geometry.whole(height, width) for view in views):
        return pixels
    size, interpolation = transform.size, transform.interpolation
    if _is_small(pixels.shape[1:]):
        return resize_batch(pixels, views, size, interpolation)
    resized = [resize_image(image, view, size, interpolation) for image, view in zip(pixels, views, strict=True)]
    return np.stack(resized)


def finish_views(views: Sequence[BatchView], pictures: Batch, positions: np.ndarray, out: Batch) -> None:
    """Flips, augments and normalises the cut `pictures [n, H, W, C]`, by view, into the arrays of `out`."""
    for number, (name, of, transform) in enumerate(views):
        if transform is None:
            out[name][:] = out[of]
            continue
        pixels = pictures[name]
        # It is flipped in place, and another view may be the same array.
        if any(other is pixels for other in (pictures.get(later.name) for later in views[number + 1 :])):
            pixels = pixels.copy()
        transform.finish(pixels, positions, out[name])


def _is_small(shape: tuple[int, ...]) -> bool:
    return shape[0] * shape[1] <= SMALL_IMAGE
