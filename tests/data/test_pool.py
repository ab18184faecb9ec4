"""The threads that fill batches."""

import itertools
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mim_jax.data.pool import PooledBatches, num_workers


class Doubler:
    chunk = 3

    def __init__(self, fail_at: int = -1):
        self.filled: list[int] = []
        self._fail_at = fail_at

    def fill(self, positions, indices, out):
        if self._fail_at in positions:
            raise ValueError(f"position {self._fail_at}")
        time.sleep(0.001 * (5 - positions[0] % 5))  # later chunks finish first
        out["image"][:] = 2 * indices
        self.filled.extend(positions.tolist())


def requests(steps, size: int = 7, rows: int = 7):
    for step in steps:
        positions = np.arange(rows) + 100 * step
        yield positions, positions + 1, {"image": np.full(size, -1)}


def test_batches_come_in_order_and_whole():
    batches = list(PooledBatches(requests(range(4)), Doubler(), workers=3, depth=2))
    assert len(batches) == 4
    for step, batch in enumerate(batches):
        assert batch["image"].tolist() == (2 * (np.arange(7) + 100 * step + 1)).tolist()


@pytest.mark.parametrize("rows", [0, 4, 5])
def test_padding_is_left_alone(rows):
    (batch,) = PooledBatches(requests([0], rows=rows), Doubler(), workers=2, depth=2)
    assert batch["image"].tolist() == [2 * (number + 1) for number in range(rows)] + [-1] * (7 - rows)


def test_an_error_belongs_to_its_batch():
    batches = PooledBatches(requests(itertools.count()), Doubler(fail_at=202), workers=2, depth=2)
    next(batches), next(batches)
    with pytest.raises(ValueError, match="position 202"):
        next(batches)
    batches.close()


def test_it_stays_ahead_by_depth_batches():
    loader = Doubler()
    batches = PooledBatches(requests(itertools.count()), loader, workers=2, depth=2)
    assert not loader.filled
    next(batches)
    deadline = time.monotonic() + 5
    while len(loader.filled) < 21 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.02)
    assert len(loader.filled) == 21
    before = threading.active_count()
    batches.close()
    assert threading.active_count() == before - 2
    assert list(batches) == []


def test_the_end_is_announced_once():
    ends: list[int] = []
    batches = PooledBatches(requests(range(2)), Doubler(), workers=1, depth=4, at_end=lambda: ends.append(1))
    assert len(list(batches)) == 2 and ends == [1]
    assert list(batches) == [] and ends == [1]


def test_workers():
    assert num_workers(3) == 3
    assert 1 <= num_workers(None) <= os.cpu_count()


def test_a_stream_in_use_does_not_disturb_the_exit():
    code = (
        "from tests.data.make import config\nfrom mim_jax import data\n"
        "batches = data.prefetch(data.train_batches(config('synthetic:100')), lambda batch: batch)\n"
        "others = data.train_batches(config('synthetic:100'))\n"
        "next(batches), next(others)\nprint('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=os.getcwd())
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
