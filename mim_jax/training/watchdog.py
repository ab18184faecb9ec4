"""Ends a run that no longer moves, with the stacks of all its threads."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import pathlib
import sys
import threading
import time
from collections.abc import Iterator

from mim_jax.errors import ConfigError

logger = logging.getLogger(__name__)
EXIT_STALLED = 76  # as with a pre-emption, a scheduler should start the same command again


class Watchdog:
    """A thread that ends the process once `limit` seconds have passed without a `beat`; does nothing for None.

    A deadlocked collective or file system cannot be interrupted from Python, so the process exits at once with
    EXIT_STALLED; the stacks go to stderr and into `dump`.
    """

    def __init__(self, limit: float | None, dump: pathlib.Path):
        if limit is not None and limit <= 0:
            raise ConfigError(f"watchdog_minutes is {limit / 60:g}; it must be positive, or None for no watchdog.")
        self._limit, self._dump = limit, dump
        self._last = time.monotonic()
        self._paused = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="mim_jax-watchdog", daemon=True)

    def beat(self) -> None:
        """Says that the run is alive."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count: an evaluation or the last save may take long."""
        self._paused = True
        try:
            yield
        finally:
            self.beat()
            self._paused = False

    def __enter__(self) -> Watchdog:
        if self._limit is not None:
            self.beat()
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        interval = min(self._limit / 10, 10.0)
        while not self._ended.wait(interval):
            if not self._paused and time.monotonic() - self._last > self._limit:
                self._exit()

    def _exit(self) -> None:
        logger.error(
            "No step has ended for %.3g s (watchdog_minutes): ending the process. Its stacks are below and in %s.",
            self._limit,
            self._dump,
        )
        try:
            self._dump.parent.mkdir(parents=True, exist_ok=True)
            with open(self._dump, "w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        finally:
            os._exit(EXIT_STALLED)  # not sys.exit: that would wait for the thread that is stuck


def in_notebook() -> bool:
    """Whether this is an IPython kernel, where a long pause is the user thinking."""
    return "ipykernel" in sys.modules
