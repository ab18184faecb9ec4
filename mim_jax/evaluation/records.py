"""The file of what evaluations found: one JSON object a line, appended, never rewritten."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from mim_jax.files import lock_file


def append_rows(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends a line for each row, each in a write of its own, and waits until they are on the disk.

    A torn last line, which a process killed while it wrote has left, is cut off first: it never was a result.
    """
    with path.open("ab+") as file:
        # A row that another process is writing must not pass for a torn one.
        lock_file(file, wait=True)
        _cut_torn_line(file.fileno(), path)
        for row in rows:
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
        os.fsync(file.fileno())


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """The whole rows of a file that `append_rows` wrote; a torn last line is left out. No file: no rows."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def _cut_torn_line(descriptor: int, path: pathlib.Path) -> None:
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.ftruncate(descriptor, end)
