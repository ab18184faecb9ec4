"""Bookkeeping of images that cannot be decoded."""

from __future__ import annotations

import logging
import threading
from typing import NoReturn

from mim_jax.errors import DataError

_LOGGER = logging.getLogger(__name__)
_NAMED = 5  # files the final error lists
_ENOUGH = 1000  # images after which the share of bad ones is trusted, or the whole split where that is smaller


class BadImages:
    """Counts unreadable images, warns once per file, and raises when their share is too large. Thread-safe."""

    def __init__(self, max_fraction: float, split_size: int):
        self.count = 0  # unreadable images met, repeated ones included
        self.total = 0  # images tried
        self._max_fraction = max_fraction
        self._minimum = min(_ENOUGH, split_size)
        self._files: dict[str, str] = {}
        self._lock = threading.Lock()

    def good(self) -> None:
        """Notes an image that was decoded."""
        with self._lock:
            self.total += 1

    def bad(self, path: str, reason: str) -> None:
        """Notes an image that was not.

        Raises:
          DataError: more than the allowed share of at least 1,000 images (or of the whole split) was unreadable.
        """
        with self._lock:
            self.count += 1
            self.total += 1
            new = path not in self._files
            self._files.setdefault(path, reason)
            count, total = self.count, self.total
            too_many = self.total >= self._minimum and self.count > self._max_fraction * self.total
        if new:
            _LOGGER.warning("Unreadable image %s: %s (%d of %d so far).", path, reason, count, total)
        if too_many:
            self.fail()

    def check(self) -> None:
        """Raises DataError if too large a share of all images so far was unreadable, however few they are."""
        if self.count > self._max_fraction * self.total:
            self.fail()

    def fail(self) -> NoReturn:
        """Raises the DataError that names the first files."""
        first = "; ".join(f"{path} ({reason})" for path, reason in list(self._files.items())[:_NAMED])
        raise DataError(
            f"{self.count} of {self.total} images could not be read and data.max_bad_fraction is {self._max_fraction}; "
            f"repair or remove them, or raise it. The first are {first}."
        )
