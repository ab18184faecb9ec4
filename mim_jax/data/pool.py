"""The threads that fill batches ahead of the consumer."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from mim_jax.data.loading import Batch, Loader

# Positions `[n]`, indices `[n]` and the batch's arrays, whose first n rows are to be filled.
Request = tuple[np.ndarray, np.ndarray, Batch]


def num_workers(requested: int | None) -> int:
    """Threads to decode with: as requested, else one per core this process may use."""
    if requested is not None:
        return requested
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class PooledBatches(Iterator[Batch]):
    """Batches filled by `workers` threads, `depth` of them ahead of the consumer, in the order of `requests`.

    Plain threads, because a `tf.data` pipeline that calls back into Python blocks the interpreter's exit while it
    runs. An iterator dropped without `close` needs no clean-up: the threads end with their executor.

    Args:
      at_end: called once after the last batch; may raise.

    Raises (from `next`): whatever the loader raises, at the batch it belongs to.
    """

    def __init__(
        self,
        requests: Iterator[Request],
        loader: Loader,
        workers: int,
        depth: int,
        at_end: Callable[[], None] | None = None,
    ):
        self._requests, self._loader, self._at_end = requests, loader, at_end
        self._workers, self._depth = workers, depth
        self._pool: ThreadPoolExecutor | None = None
        self._pending: collections.deque[tuple[list[Future], Batch]] = collections.deque()

    def __next__(self) -> Batch:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="mim_jax-data")
            for _ in range(self._depth):
                self._start()
        if not self._pending:
            at_end, self._at_end = self._at_end, None
            self.close()
            if at_end is not None:
                at_end()
            raise StopIteration
        futures, batch = self._pending.popleft()
        for future in futures:
            future.result()
        self._start()
        return batch

    def close(self) -> None:
        """Stops the threads; what they are loading is finished, what they have not begun is dropped."""
        self._requests, self._pending = iter(()), collections.deque()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> None:
        request = next(self._requests, None)
        if request is None:
            return
        positions, indices, batch = request
        # Every array is cut to the rows to fill, so that a chunk never reaches into the padding.
        rows = {name: array[: len(positions)] for name, array in batch.items()}
        futures = []
        for first in range(0, len(positions), self._loader.chunk):
            part = slice(first, first + self._loader.chunk)
            out = {name: array[part] for name, array in rows.items()}
            futures.append(self._pool.submit(self._loader.fill, positions[part], indices[part], out))
        self._pending.append((futures, batch))
