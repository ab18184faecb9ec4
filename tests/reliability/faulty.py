"""`mim_jax.train` with a fault that strikes from inside: `python -m tests.reliability.faulty`, told by $FAULT (JSON).

{"kill_at_batch": 7}                    SIGKILL while batch 7 is being loaded
{"kill_in_save": 1, "after_ms": 20}     SIGKILL so long after the save of that number (from 0) has begun
{"terminate_at_batch": 7}               SIGTERM, then the run goes on until it notices
{"stall_at_batch": 7}                   batch 7 never comes
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator

from absl import flags

from mim_jax import data
from mim_jax import train as training
from mim_jax.cli import config_from_command_line, join_processes, run_main
from mim_jax.training.checkpoint import Checkpointer

MODULE = "tests.reliability.faulty"


def fault(**what: int) -> dict[str, str]:
    """The environment of a run with this fault."""
    return {"FAULT": json.dumps(what)}


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _batches(config, start_step: int, what: dict) -> Iterator[dict]:
    for step, batch in enumerate(data.train_batches(config, start_step=start_step), start_step):
        if step == what.get("kill_at_batch"):
            _kill()
        if step == what.get("terminate_at_batch"):
            os.kill(os.getpid(), signal.SIGTERM)
        if step == what.get("stall_at_batch"):
            time.sleep(1000)
        yield batch


def _kill_in_save(number: int, seconds: float) -> None:
    save, calls = Checkpointer.save, iter(range(10**6))

    def saving(checkpointer, state, meta):
        if next(calls) == number:
            timer = threading.Timer(seconds, _kill)
            timer.daemon = True
            timer.start()
        save(checkpointer, state, meta)

    Checkpointer.save = saving


def main(path: str | None, overrides: dict[str, str]) -> None:
    what = json.loads(os.environ["FAULT"])
    config = config_from_command_line(path, overrides)
    join_processes()
    if "kill_in_save" in what:
        _kill_in_save(what["kill_in_save"], what["after_ms"] / 1000)
    training.train(config, flags.FLAGS.workdir, batches=lambda start: _batches(config, start, what))


if __name__ == "__main__":
    training.define_flags()
    run_main(main)
