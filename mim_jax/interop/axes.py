"""Invertible rearrangements of arrays, written as patterns like `"(t h d) i -> i t h d"`.

The left side is the array in a public checkpoint, the right side the parameter here. A pattern only reshapes and
transposes, so it runs in both directions and loses nothing. Parentheses join axes, the leftmost one slowest; `1` is an
axis of length one.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping

import numpy as np

Groups = tuple[tuple[str, ...], ...]

SAME = ""  # norms, biases, scales, tables: nothing to rearrange
LINEAR = "o i -> i o"
TOKEN = "1 1 d -> d"  # class and mask tokens
PATCH_CONVOLUTION = "o c h w -> (h w c) o"  # to a dense layer on patches flattened with the channel fastest
HEAD_BIAS = "(h d) -> h d"
HEADS = "(h d) i -> i h d"  # one projection to all heads
FUSED_QKV = "(t h d) i -> i t h d"  # rows ordered q, k, v, then heads
FUSED_QKV_BIAS = "(t h d) -> t h d"
SPLIT_QKV = "t (h d) i -> i t h d"  # three tensors, stacked on t
SPLIT_QKV_BIAS = "t (h d) -> t h d"
ATTENTION_OUT = "o (h d) -> h d o"
PIXEL_SHUFFLE = "(c h w) i 1 1 -> i (h w c)"  # 1x1 convolution before a PixelShuffle, to a dense layer on patch vectors
PIXEL_SHUFFLE_BIAS = "(c h w) -> (h w c)"
POSITIONS = "1 n d -> n d"


def theirs_shape(pattern: str, ours: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Shape in the checkpoint of a parameter of shape `ours`.

    Raises:
      ValueError: `ours` does not fit the pattern and the given axis sizes.
    """
    if pattern == SAME:
        return tuple(ours)
    left, right = _parse(pattern)
    return _joined(left, _measure(right, ours, sizes))


def to_ours(array: np.ndarray, pattern: str, ours: tuple[int, ...], sizes: Mapping[str, int]) -> np.ndarray:
    """A checkpoint's array as a parameter of shape `ours`; its shape must be `theirs_shape(pattern, ours, sizes)`."""
    if pattern == SAME:
        return array
    left, right = _parse(pattern)
    return _rearrange(array, left, right, _measure(right, ours, sizes))


def to_theirs(array: np.ndarray, pattern: str, sizes: Mapping[str, int]) -> np.ndarray:
    """The inverse of `to_ours`."""
    if pattern == SAME:
        return array
    left, right = _parse(pattern)
    return _rearrange(array, right, left, _measure(right, array.shape, sizes))


@functools.lru_cache(maxsize=256)
def _parse(pattern: str) -> tuple[Groups, Groups]:
    left, right = pattern.split("->")

    def groups(side: str) -> Groups:
        tokens = re.findall(r"\(([^)]*)\)|(\S+)", side)
        return tuple(tuple(name for name in (inside or single).split() if name != "1") for inside, single in tokens)

    left, right = groups(left), groups(right)
    if sorted(sum(left, ())) != sorted(sum(right, ())):
        raise ValueError(f"The two sides of {pattern!r} name different axes.")
    return left, right


def _measure(groups: Groups, shape: tuple[int, ...], sizes: Mapping[str, int]) -> dict[str, int]:
    """The length of every axis, from a shape and the lengths already known."""
    if len(groups) != len(shape):
        raise ValueError(f"shape {shape} has {len(shape)} axes where {len(groups)} are expected")
    measured = {}
    for group, length in zip(groups, shape, strict=True):
        known = {name: sizes[name] for name in group if name in sizes}
        unknown = [name for name in group if name not in sizes]
        rest, remainder = divmod(length, math.prod(known.values()))
        if remainder or len(unknown) > 1 or (not unknown and rest != 1):
            raise ValueError(f"an axis of length {length} does not split into {' x '.join(group)} with {known}")
        measured |= known | {name: rest for name in unknown}
    return measured


def _joined(groups: Groups, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[name] for name in group) for group in groups)


def _rearrange(array: np.ndarray, source: Groups, target: Groups, sizes: Mapping[str, int]) -> np.ndarray:
    flat = [name for group in source for name in group]
    order = [flat.index(name) for group in target for name in group]
    return array.reshape([sizes[name] for name in flat]).transpose(order).reshape(_joined(target, sizes))
