"""Notice of pre-emption, from a signal or from the cluster."""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: a scheduler should start the same command again


_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # SLURM's --signal sends the second


class PreemptionNotice:
    """Notices SIGTERM and SIGUSR1, so that the loop can save and leave.

    In a run of one process a second signal ends it at once. With several, one of them suffices to stop all.
    """

    def __init__(self):
        self._name: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> PreemptionNotice:
        # Signal handlers belong to the main thread; in a notebook's worker thread there is nothing to notice.
        if threading.current_thread() is threading.main_thread():
            handlers = dict.fromkeys(_SIGNALS, self._receive)
            if jax.process_count() > 1:
                # jax.distributed listens for SIGTERM itself and tells the other processes: a handler in its place would
                # keep the notice from all of them.
                handlers = {signal.SIGUSR1: lambda number, frame: signal.raise_signal(signal.SIGTERM)}
            self._previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def received(self, step: int) -> str | None:
        """The signal's name once it came; with several processes, at the same step on all of them."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return "a preemption notice" if multihost_utils.reached_preemption_sync_point(step) else None
        return self._name

    def _receive(self, number, frame) -> None:
        del frame
        if self._name is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._name = signal.Signals(number).name
