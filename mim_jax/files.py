"""Files that are there whole or not at all, and locks on them."""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
from collections.abc import Callable
from typing import IO

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


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


def lock_file(file: IO, *, wait: bool) -> bool:
    """Locks an open file against other processes until it is closed, by its process's death at the latest.

    Returns:
      False where the file system knows no locks, as some network file systems do.

    Raises:
      BlockingIOError: another process holds the lock, and `wait` is False.
    """
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True
