"""A program of mim_jax whose clock runs backwards and whose sockets reach this machine only.

python -m tests.reliability.estranged mim_jax.train --config=...
"""

from __future__ import annotations

import importlib
import itertools
import socket
import sys
import time

from mim_jax.cli import run_main

MODULE = "tests.reliability.estranged"
_LOCAL = ("localhost", "127.0.0.1", "::1")


def turn_back_the_clock() -> None:
    """Each call of `time.time` is ten seconds before the one before it."""
    start, calls = time.time(), itertools.count()
    time.time = lambda: start - 10.0 * next(calls)


def cut_the_network() -> None:
    """Connections and look-ups of names end the process, loudly."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address):
        if self.family != socket.AF_UNIX and address[0] not in _LOCAL:
            raise SystemExit(f"tried to connect to {address}")
        return connect(self, address)

    def guarded_look_up(host, *arguments, **keywords):
        if host not in (*_LOCAL, None):
            raise SystemExit(f"tried to look up {host}")
        return look_up(host, *arguments, **keywords)

    socket.socket.connect, socket.getaddrinfo = guarded_connect, guarded_look_up


if __name__ == "__main__":
    turn_back_the_clock()
    cut_the_network()
    program = importlib.import_module(sys.argv.pop(1))
    program.define_flags()
    run_main(program.main)
