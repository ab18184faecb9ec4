"""The file of what evaluations found: one JSON object a line, appended, never rewritten."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def append_rows(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends a line for each row, each in a write of its own, and waits until they are on the disk.

    A torn last line, which a process killed while it wrote has left, is cut off first: it never was a result.
    """
    with path.open("ab+") as file:
        _lock(file.fileno())
        _cut_torn_line(file.fileno(), path)
        for row in rows:
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
        os.fsync(file.fileno())


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """The whole rows of a file that `append_rows` wrote; a torn last line is left out. No file: no rows."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def _lock(descriptor: int) -> None:
    """Waits for its turn until the file is closed: a row another process is writing must not pass for a torn one."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:  # some network file systems have no locks
            raise


def _cut_torn_line(descriptor: int, path: pathlib.Path) -> None:
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.ftruncate(descriptor, end)
