"""Bounded retries of reads from storage that fails now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from mim_jax.errors import DataError

T = TypeVar("T")
ATTEMPTS = 4
FIRST_DELAY = 0.2  # seconds; doubled after each failure

_LOGGER = logging.getLogger(__name__)


def read_with_retries(read: Callable[[], T], path: str, failures: tuple[type[Exception], ...] = (OSError,)) -> T:
    """Calls `read` up to `ATTEMPTS` times.

    Raises:
      DataError: naming `path`, when every attempt failed with one of `failures`.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return read()
        except failures as error:
            delay = FIRST_DELAY * 2 ** (attempt - 1)
            _LOGGER.warning("Reading %s failed (%s); trying again in %.1f s.", path, error, delay)
            time.sleep(delay)
    try:
        return read()
    except failures as error:
        raise DataError(
            f"Cannot read {path} after {ATTEMPTS} attempts: {error}; check the storage it is on."
        ) from error
