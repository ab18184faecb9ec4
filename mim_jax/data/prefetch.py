"""Keeps the next batches on their way to the devices while the current one is being used."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from mim_jax.errors import ConfigError

In = TypeVar("In")
Out = TypeVar("Out")


class Prefetcher(Generic[Out]):
    """The iterator that `prefetch` returns. Close it, or use it in a `with` block, to stop the loader early."""

    def __init__(self, batches: Iterator[In], put: Callable[[In], Out], depth: int):
        if depth < 1:
            raise ConfigError(f"The prefetch depth is {depth}; it must be at least 1.")
        self.wait_seconds = 0.0  # time the consumer has spent waiting for a batch, in total
        self._batches, self._put = iter(batches), put
        # An executor rather than a bare thread: it is joined before the interpreter is torn down.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mim_jax-prefetch")
        self._futures: collections.deque[Future[tuple[Out] | None]] = collections.deque()
        for _ in range(depth):
            self._futures.append(self._thread.submit(self._next))

    def __iter__(self) -> Prefetcher[Out]:
        return self

    def __next__(self) -> Out:
        if not self._futures:
            raise StopIteration
        start, item = time.perf_counter(), None
        try:
            item = self._futures.popleft().result()
        finally:
            self.wait_seconds += time.perf_counter() - start
            if item is None:  # the loader has ended or failed
                self.close()
        if item is None:
            raise StopIteration
        self._futures.append(self._thread.submit(self._next))
        return item[0]

    def __enter__(self) -> Prefetcher[Out]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the background thread and the loader behind it; the iterator is exhausted afterwards."""
        self._futures.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()

    def _next(self) -> tuple[Out] | None:
        for batch in self._batches:
            return (self._put(batch),)
        return None


def prefetch(batches: Iterator[In], put: Callable[[In], Out], depth: int = 2) -> Prefetcher[Out]:
    """Yields `put(batch)` for each of `batches`, computed `depth` ahead of the consumer in a background thread.

    Args:
      put: starts the transfer to the devices, such as a call of `jax.make_array_from_process_local_data`.

    Returns:
      An iterator with the attribute `wait_seconds`. What the loader or `put` raises is raised at the consumer.
    """
    return Prefetcher(batches, put, depth)
