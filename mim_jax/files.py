"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable


def replace_file(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    """Has `write` make a file beside `path`, and puts that in its place once it is complete and on the disk.

    Whatever happens, `path` holds either what it held before or everything new.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: pathlib.Path, text: str) -> None:
    """`replace_file` with UTF-8 text."""
    replace_file(path, lambda file: file.write_text(text, encoding="utf-8"))
