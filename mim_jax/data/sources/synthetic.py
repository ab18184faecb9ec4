"""Labelled images made from their index, so that models and benchmarks run with no data and no TensorFlow."""

from __future__ import annotations

import functools

import numpy as np

from mim_jax.data.sources.examples import text_digest
from mim_jax.data.stateless import Stream, keys, uniforms

NUM_CLASSES = 10
_CELLS = 8  # coarse colour fields per side


class SyntheticExamples:
    """`size` images of `shape (H, W, C)`: a colour pattern per class under coarse noise, the same for every run.

    The label of image i is `i % 10`; half of a pixel's value is its class's pattern, so that features can be learnt.
    `partners` are the same images turned around sideways by a quarter, as a stand-in for another point of view.
    """

    class_names = tuple(f"class {number}" for number in range(NUM_CLASSES))
    num_classes = NUM_CLASSES
    dtype = np.dtype(np.uint8)

    def __init__(self, size: int, shape: tuple[int, int, int], split: str, first_column: int = 0):
        self.name = f"synthetic:{size} ({split})"
        self.image_shape = shape
        self.fingerprint = text_digest(self.name, str(shape))
        self._size = size
        self._salt = {"train": 0}.get(split, 1)
        # Nearest-neighbour maps from pixels to coarse cells.
        self._rows = np.arange(shape[0]) * _CELLS // shape[0]
        self._columns = np.roll(np.arange(shape[1]) * _CELLS // shape[1], -first_column)
        self._patterns = _fields(np.arange(NUM_CLASSES), 2, shape[2])
        self._split = split

    def __len__(self) -> int:
        return self._size

    @functools.cached_property
    def partners(self) -> SyntheticExamples:
        """The second pictures of pairs."""
        return SyntheticExamples(self._size, self.image_shape, self._split, self.image_shape[1] // 4)

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 `[n, H, W, C]` and labels int32 `[n]` at `indices [n]`."""
        labels = (indices % NUM_CLASSES).astype(np.int32)
        coarse = self._patterns[labels] // 2 + _fields(indices, self._salt, self.image_shape[2]) // 2
        wide = np.take(coarse, self._columns, axis=2)  # columns first: the long copies that follow are then contiguous
        return np.take(wide, self._rows, axis=1), labels


def _fields(indices: np.ndarray, salt: int, channels: int) -> np.ndarray:
    """Random coarse images: uint8 `[n, 8, 8, C]`."""
    seeds = keys(salt, Stream.SYNTHETIC, indices).astype(np.int64)
    draws = uniforms(salt, Stream.SYNTHETIC, seeds, _CELLS * _CELLS * channels)
    return (draws * 256).astype(np.uint8).reshape(len(indices), _CELLS, _CELLS, channels)


class SyntheticDataset:
    """`synthetic:N`: a training and an evaluation split of N images each, of the size the config asks for."""

    splits = ("train", "test")

    def __init__(self, size: int, shape: tuple[int, int, int]):
        self.name = f"synthetic:{size}"
        self._size, self._shape = size, shape

    def open(self, split: str) -> SyntheticExamples:
        """The examples of `split`."""
        return SyntheticExamples(self._size, self._shape, split)
