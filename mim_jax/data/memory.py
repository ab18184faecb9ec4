"""Bounds on the memory that images may take, whatever a file's header announces."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from mim_jax.errors import DataError


class MemoryBudget:
    """Lets threads work side by side while their estimated needs add up to at most `total` bytes; others wait."""

    def __init__(self, total: int):
        self.total = total
        self._free = total
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserve(self, needed: int) -> Iterator[None]:
        """Holds `needed` bytes inside the `with` block; whoever needs more than there is in all gets it all."""
        needed = min(needed, self.total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= needed)
            self._free -= needed
        try:
            yield
        finally:
            with self._changed:
                self._free += needed
                self._changed.notify_all()


def check_fits(needed: int, name: str) -> None:
    """Raises DataError if `name`, which is read as a whole, would take more memory than the machine has."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    if physical is not None and needed > physical:
        raise DataError(
            f"{name} unpacks to {needed:,} bytes, more than the memory of this machine ({physical:,}); store the "
            "images as files (folder:DIR) or prepare them for TFDS."
        )
