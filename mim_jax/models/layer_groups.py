"""Layers of encoders with stages, as layer-wise learning rate decay counts them (Clark et al. 2020)."""

from __future__ import annotations


def count_layers(depths: tuple[int, ...], group_sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The layer of every block of every stage, where neighbouring blocks of a stage may form one layer.

    Layer 0 is what precedes the blocks.

    Args:
      depths: blocks of each stage.
      group_sizes: blocks of a layer, for each stage.

    Returns:
      Of each stage the layers of its blocks: `[(1,), (2, 2), (3, 3, 3, 4)]` for depths `(1, 2, 4)` in groups of up to
      3.
    """
    stages, first = [], 1
    for depth, size in zip(depths, group_sizes, strict=True):
        stages.append(tuple(first + block // size for block in range(depth)))
        first = stages[-1][-1] + 1
    return stages
