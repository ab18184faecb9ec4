"""Command lines: `--config=FILE[:arg] --config.a.b=value ...` in the manner of ml_collections' config_flags.

config_flags itself cannot set an optional field to None or a size to a (height, width) pair, and answers a misspelt key
with a traceback; here every mistake is one sentence that names the nearest key.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import absl.logging
import jax
from absl import app, flags
from ml_collections import ConfigDict

from mim_jax.config import load_config, override, parse_value
from mim_jax.errors import CheckpointError, ConfigError, DataError, TrainingError, WeightsError
from mim_jax.training.watchdog import EXIT_STALLED

EXIT_USAGE = 2  # the config, the data or the files given cannot be used
_GRACE = 60  # seconds by which JAX's time-out at the start follows ours


def split_config_arguments(argv: Sequence[str]) -> tuple[str | None, dict[str, str], list[str]]:
    """The config file, the overrides by dotted name as text, and the remaining arguments."""
    path, overrides, rest = None, {}, []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or name.split(".")[0] != "config":
            rest.append(argument)
        elif name == "config":
            path = value if equals else next(arguments, None)
        else:
            overrides[name.removeprefix("config.")] = value if equals else "True"
    return path, overrides, rest


def apply_overrides(config: ConfigDict, overrides: dict[str, str]) -> ConfigDict:
    """Sets each override, its text read as the key's type; returns the same config. Raises ConfigError."""
    for name, text in overrides.items():
        override(config, name, parse_value(config, name, text))
    return config


def run_main(main: Callable[[str | None, dict[str, str]], None]) -> None:
    """Parses the command line and calls `main(config_path, overrides)`; mistakes of the user end it with one sentence.

    Exit codes: 2 for config, data, checkpoint and weights errors, 1 for a training error.
    """
    path, overrides, rest = split_config_arguments(sys.argv)

    def wrapped(argv: list[str]) -> None:
        show_own_logs_only()
        try:
            if len(argv) > 1:
                raise ConfigError(f"Unexpected argument {argv[1]!r}.")
            main(path, overrides)
        except (ConfigError, DataError, CheckpointError, WeightsError) as error:
            _leave(error, EXIT_USAGE)
        except TrainingError as error:
            _leave(error, 1)

    app.run(wrapped, argv=rest, flags_parser=_parse_flags)


def define_process_flags() -> None:
    """Defines the flags by which several processes find one another."""
    flags.DEFINE_bool("distributed", False, "Find the other processes from the cluster (TPU, SLURM, Open MPI, GKE).")
    flags.DEFINE_string("coordinator", None, "host:port of process 0, to run several processes by hand.")
    flags.DEFINE_integer("num_processes", None, "With --coordinator: how many processes there are.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "With --coordinator: which one this is, from 0.", lower_bound=0)
    flags.DEFINE_integer("startup_seconds", 300, "How long to wait for the others to start.", lower_bound=1)
    flags.DEFINE_integer(
        "heartbeat_seconds", 60, "A process silent for this long counts as dead; the others end.", lower_bound=1
    )


def join_processes() -> None:
    """Connects this process to the others the flags speak of; call it before anything touches a device.

    Ends the process with EXIT_STALLED if they have not all met within `--startup_seconds`.

    Raises:
      ConfigError: the flags contradict one another, no cluster is found, or process 0 cannot listen on its port.
    """
    given = flags.FLAGS
    by_hand = (given.coordinator, given.num_processes, given.process_id)
    if given.distributed and by_hand != (None, None, None):
        raise ConfigError("--distributed finds the processes itself; leave out the other flags, or give these alone.")
    if not given.distributed:
        if by_hand == (None, None, None):
            return
        _check_by_hand(*by_hand)
    with _giving_up_after(given.startup_seconds, by_hand):
        try:
            jax.distributed.initialize(
                *by_hand,
                # Flags given by hand are all there is: variables of a scheduler around them are left alone.
                cluster_detection_method=None if given.distributed else "deactivate",
                initialization_timeout=given.startup_seconds + _GRACE,
                heartbeat_timeout_seconds=given.heartbeat_seconds,
            )
        except ValueError as error:
            raise ConfigError(
                f"--distributed finds no TPU, SLURM, Open MPI 4 or GKE cluster around it ({error}); start it with the "
                "cluster's launcher, or give --coordinator, --num_processes and --process_id."
            ) from error
        except RuntimeError as error:
            raise ConfigError(f"This process cannot join the others: {error}") from error


def _check_by_hand(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    if None in (coordinator, num_processes, process_id):
        raise ConfigError("Give --coordinator, --num_processes and --process_id together.")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--coordinator is {coordinator!r}; write process 0's host:port, such as 10.0.0.1:8476.")
    if process_id >= num_processes:
        raise ConfigError(f"--process_id is {process_id}, but the {num_processes} processes count from 0.")
    if process_id == 0:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:  # JAX crashes on some ports in use
            raise ConfigError(f"Process 0 cannot listen on port {port} ({error}); choose a free one.") from error


@contextlib.contextmanager
def _giving_up_after(seconds: int, by_hand: tuple[str | None, int | None, int | None]) -> Iterator[None]:
    """Ends the process with one sentence if the body takes longer; JAX's own time-out aborts with a C++ stack trace."""
    coordinator, count, index = by_hand
    which = "as found from the cluster" if coordinator is None else f"process {index} of {count} at {coordinator}"

    def give_up():
        print(
            f"error: The processes ({which}) did not all meet within {seconds} s (--startup_seconds); check that all "
            "were started and can reach the coordinator's port.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_STALLED)  # the main thread is inside C++ and cannot be interrupted

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def config_from_command_line(path: str | None, overrides: dict[str, str]) -> ConfigDict:
    """The config of `--config=...` with its overrides; raises ConfigError."""
    if not path:
        raise ConfigError("Give a config: --config=configs/mae_fashion_mnist.py")
    return apply_overrides(load_config(path), overrides)


def show_own_logs_only() -> None:
    """This package's messages go to stderr, one plain line each; libraries report errors only."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    absl.logging.set_verbosity(absl.logging.ERROR)
    # What Orbax logs with a stack trace it also raises, and `_leave` reports that.
    absl.logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
    own = logging.getLogger("mim_jax")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    own.handlers, own.propagate = [handler], False
    own.setLevel(logging.INFO)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _leave(error, EXIT_USAGE)


def _leave(error: Exception, code: int) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    if isinstance(error, CheckpointError | TrainingError):
        # An orderly end would wait for the other processes, which know nothing of the error, and Orbax's abandoned
        # writes would complain for pages after the one sentence that matters.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
