"""A long tiny run that watches its own process: `python -m tests.reliability.endurance WORKDIR STEPS`."""

from __future__ import annotations

import gc
import json
import os
import pathlib
import sys
import threading
from collections.abc import Iterator

from mim_jax import data
from mim_jax.train import train
from tests.tiny import tiny_config

EVERY = 250  # steps between two samples
PAGE = os.sysconf("SC_PAGE_SIZE")


def sample(step: int) -> dict[str, float]:
    """Resident memory in MB, open files and threads of this process."""
    gc.collect()
    resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    return {"step": step, "resident_mb": resident, "files": files, "threads": threads}


def main(workdir: str, steps: str) -> None:
    changes = {
        "image_size": 16,
        "model.depth": 1,
        "decoder.depth": 1,
        "duration": f"{steps} steps",
        "log.every": "50 steps",
        "log.tensorboard": True,
        "log.progress": False,
        "checkpoint.every": "500 steps",
    }
    config = tiny_config("mae", changes)
    samples: list[dict[str, float]] = []

    def batches(start: int) -> Iterator[dict]:
        for step, batch in enumerate(data.train_batches(config, start_step=start), start):
            if step % EVERY == 0:
                samples.append(sample(step))
            yield batch

    train(config, workdir, batches=batches)
    pathlib.Path(workdir, "samples.json").write_text(json.dumps(samples))


if __name__ == "__main__":
    main(*sys.argv[1:])
