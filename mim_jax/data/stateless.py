"""Randomness as a pure function of (seed, position): a counter-based hash and a keyed permutation, both NumPy.

Nothing here depends on the version of TensorFlow or on NumPy's generators, so the order of the data and the random
crops outlive both (golden values are tested).
"""

from __future__ import annotations

import enum

import numpy as np

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 8


class Stream(enum.IntEnum):
    """Independent uses of randomness at one position; the numbers are part of the stream's definition."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    REPLACEMENT = 3
    RAND_AUGMENT = 4
    RANDOM_ERASING = 5
    SYNTHETIC = 6
    SECOND_VIEW = 7
    COLOR = 8


def mix64(x: np.ndarray) -> np.ndarray:
    """A bijective 64-bit mixer applied to each element of a uint64 array (the finaliser of SplitMix64, Steele 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(seed: int, stream: Stream, counters: np.ndarray) -> np.ndarray:
    """One 64-bit key per counter `[n]` (any integers): uint64 `[n]`, independent between seeds and streams."""
    start = np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64)
    start = mix64(mix64(start + _GOLDEN_GAMMA) + np.array([stream + 1], np.uint64) * _GOLDEN_GAMMA)
    return mix64(mix64(start + counters.astype(np.uint64) * _GOLDEN_GAMMA))


def uniforms(seed: int, stream: Stream, positions: np.ndarray, count: int) -> np.ndarray:
    """Uniform draws in [0, 1) for each of `positions [n]`: float64 `[n, count]`, multiples of 2^-53."""
    counter = np.arange(1, count + 1, dtype=np.uint64)[None, :] * _GOLDEN_GAMMA
    bits = mix64(keys(seed, stream, positions)[:, None] + counter)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def second_seed(seed: int) -> int:
    """The seed of an example's second view, whose random choices are independent of those of the first."""
    return int(keys(seed, Stream.SECOND_VIEW, np.zeros(1, np.int64))[0])


def permute(seed: int, epochs: np.ndarray, offsets: np.ndarray, size: int) -> np.ndarray:
    """The element that stands at `offsets [n]` in the random order of each of `epochs [n]`: int64 `[n]` in [0, size).

    For a fixed epoch this is a permutation of `range(size)`, evaluated point by point without being stored: an
    alternating Feistel network over the next power of two, walked until it falls inside the range (Black and Rogaway
    2002).
    """
    key = keys(seed, Stream.ORDER, epochs)
    values = offsets.astype(np.uint64)
    bits = max(2, int(size - 1).bit_length())
    pending = np.arange(values.size)
    while pending.size:
        values[pending] = _feistel(values[pending], key[pending], bits)
        pending = pending[values[pending] >= size]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, key: np.ndarray, bits: int) -> np.ndarray:
    left_bits, right_bits = bits // 2, bits - bits // 2
    left = values >> np.uint64(right_bits)
    right = values & np.uint64((1 << right_bits) - 1)
    gammas = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _GOLDEN_GAMMA
    for gamma in gammas:
        round_key = key + gamma
        mask = np.uint64((1 << left_bits) - 1)
        left, right = right, (left ^ mix64(mix64(round_key ^ right))) & mask
        left_bits, right_bits = right_bits, left_bits
    return (left << np.uint64(right_bits)) | right
