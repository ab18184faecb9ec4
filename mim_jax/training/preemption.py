"""Notice of pre-emption, from a signal or from the cluster."""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: a scheduler should start the same command again


_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # SLURM's --signal sends the second


class PreemptionNotice:
    """Notices SIGTERM and SIGUSR1, so that the loop can save and leave; a second one ends the process at once."""

    def __init__(self):
        self._name: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> PreemptionNotice:
        # Signal handlers belong to the main thread; in a notebook's worker thread there is nothing to notice.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}
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
