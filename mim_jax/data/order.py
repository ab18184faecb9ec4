"""Which example stands at which position of the infinite training stream."""

from __future__ import annotations

import dataclasses

import numpy as np

from mim_jax.data.stateless import Stream, permute, uniforms
from mim_jax.errors import ConfigError


def local_slice(batch_size: int, process_index: int, process_count: int) -> tuple[int, int]:
    """Offset and length of one process's share of a global batch.

    Raises:
      ConfigError: the batch does not divide among the processes, or there is no such process.
    """
    if not 0 <= process_index < process_count:
        raise ConfigError(f"process_index is {process_index}, but the {process_count} processes count from 0.")
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(
            f"batch_size {batch_size} does not divide among {process_count} processes; choose a multiple of it."
        )
    local = batch_size // process_count
    return process_index * local, local


@dataclasses.dataclass(frozen=True)
class TrainOrder:
    """The stream: epoch after epoch of `size` examples, each epoch in an order of its own, cut into global batches.

    Position p is the example at offset `p % size` of epoch `p // size`, whatever the number of processes. With
    `repeats` every example stands at as many neighbouring positions, each of which is augmented by itself, and an epoch
    is still `size` positions, so that it shows another part of the data every time. That is repeated augmentation
    (Hoffer et al. 2020, arXiv 1901.09335) as in timm's RepeatAugSampler, which drops up to 255 positions of an epoch.
    """

    seed: int
    size: int
    batch_size: int
    repeats: int = 1

    def positions(self, step: int, offset: int, length: int) -> np.ndarray:
        """Stream positions of one process's slice of the batch of `step`: int64 `[length]`."""
        return step * self.batch_size + offset + np.arange(length, dtype=np.int64)

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """The example at each of `positions [n]`: int64 `[n]`."""
        return permute(self.seed, positions // self.size, self._offsets(positions), self.size)

    def replacement(self, position: int, attempt: int) -> int:
        """Another example of the same epoch, to stand in for an unreadable one; `attempt` counts from 0."""
        where = np.array([position], np.int64)
        draw = uniforms(self.seed, Stream.REPLACEMENT, where, attempt + 1)[0, attempt]
        step = 1 + int(draw * (self.size - 1))
        offset = (self._offsets(where) + step) % self.size
        return int(permute(self.seed, where // self.size, offset, self.size)[0])

    def _offsets(self, positions: np.ndarray) -> np.ndarray:
        """Places in the order of the epoch."""
        return positions % self.size // self.repeats
