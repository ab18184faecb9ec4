"""One run at a time in a work directory."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import pathlib
import socket
from collections.abc import Iterator

from mim_jax.errors import ConfigError
from mim_jax.files import lock_file

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def workdir_lock(workdir: pathlib.Path) -> Iterator[None]:
    """Makes `workdir` where it is missing, and holds its `run.lock` while the run lives.

    The kernel's own lock on the file is what counts, and it ends with the process however that dies, so a killed run
    leaves nothing to clear away. The file's text says who holds it.

    Raises:
      ConfigError: another run holds it, or nothing can be written there.
    """
    path = workdir / "run.lock"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise ConfigError(f"workdir {workdir} cannot be written to ({error}); give another one.") from error
    with path.open("a", encoding="utf-8") as file:
        try:
            locked = lock_file(file, wait=False)
        except BlockingIOError:
            raise ConfigError(
                f"workdir {workdir} is in use by another run ({_owner(path)}); wait for it or give another workdir."
            ) from None
        if not locked:
            logger.warning("%s is on a file system without locks; make sure that no other run uses it.", workdir)
        file.truncate(0)
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": started}) + "\n")
        file.flush()
        yield


def _owner(path: pathlib.Path) -> str:
    try:
        owner = json.loads(path.read_text())
        return f"process {owner['pid']} on {owner['host']}, started {owner['started']}"
    except (OSError, ValueError, KeyError):
        return f"see {path}"  # it is just being written
