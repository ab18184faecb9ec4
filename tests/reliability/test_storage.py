"""Storage that goes away, comes back, or is slow."""

from __future__ import annotations

import itertools
import os
import pathlib
import shutil
import statistics
import tempfile
import time

import pytest

from mim_jax import data
from mim_jax.data.sources.synthetic import SyntheticExamples
from mim_jax.errors import DataError
from mim_jax.train import train
from tests import processes
from tests.data.make import config, write_folder
from tests.tiny import tiny_config

RETRIES = 0.2 + 0.4 + 0.8  # seconds between the four attempts


@pytest.fixture
def unprivileged():
    """A folder of a user whom permissions bind, as they do not bind root; the test runs as that user."""
    folder = pathlib.Path(tempfile.mkdtemp())
    root = os.geteuid() == 0
    if root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    for inner in folder.iterdir():
        inner.chmod(0o700)
    shutil.rmtree(folder)


def test_a_run_survives_a_short_outage_and_ends_clearly_after_a_long_one(tmp_path):
    folder, away, workdir = tmp_path / "data", tmp_path / "away", tmp_path / "run"
    write_folder(folder, 64, classes=0)
    source = {"data.source": f"folder:{folder}", "data.eval_split": None, "data.crop": "random_resized", "channels": 3}
    endless = {"duration": "100000 steps", "checkpoint.every": "100000 steps"}
    run = processes.launch(processes.command(workdir, {**source, **endless}))
    try:
        processes.wait_for_step(workdir, 5, seconds=60)
        folder.rename(away)
        time.sleep(0.4)
        away.rename(folder)
        processes.wait_for_step(workdir, processes.rows(workdir)[-1]["step"] + 20, seconds=60)
        folder.rename(away)
        start = time.monotonic()
        code, output = processes.finish(run, seconds=60)
    finally:
        run.kill()
        run.communicate()
    assert time.monotonic() - start < RETRIES + 20
    assert f"Reading {folder}/" in output and "trying again in 0.2 s" in output
    last = output.strip().splitlines()[-1]
    assert code == 2 and f"Cannot read {folder}/" in last and "after 4 attempts" in last, output[-3000:]
    assert "Traceback" not in output


def test_a_file_that_vanishes_is_named_in_bounded_time(tmp_path):
    write_folder(tmp_path, 64)
    batches = data.train_batches(config(f"folder:{tmp_path}"))
    next(batches)
    victim = tmp_path / "class1" / "0007.png"
    victim.unlink()
    start = time.monotonic()
    with pytest.raises(DataError, match=f"^Cannot read {victim} after 4 attempts: .*No such file.*; check the storage"):
        for _ in itertools.islice(batches, 64):
            pass
    assert RETRIES <= time.monotonic() - start < RETRIES + 5


def test_a_folder_that_cannot_be_listed_is_not_left_out(unprivileged):
    write_folder(unprivileged, 8)
    (unprivileged / "class1").chmod(0)
    with pytest.raises(DataError, match=f"^Cannot read {unprivileged} after 4 attempts: .*{unprivileged}/class1"):
        data.data_info(config(f"folder:{unprivileged}"))


def waiting(workdir) -> float:
    """The share of the time spent waiting once the batches read during compilation are used up."""
    sizes = {"model.depth": 1, "decoder.depth": 1, "data.num_workers": 1, "data.prefetch": 1}
    train(tiny_config("mae", {**sizes, "duration": "14 steps", "checkpoint.every": "14 steps"}), workdir)
    return statistics.median(row["data_wait_share"] for row in processes.rows(workdir) if row["step"] > 8)


def test_waiting_for_slow_data_is_logged(tmp_path, monkeypatch):
    fast = waiting(tmp_path / "fast")
    gather = SyntheticExamples.gather

    def slow_gather(self, indices):
        time.sleep(0.5)
        return gather(self, indices)

    monkeypatch.setattr(SyntheticExamples, "gather", slow_gather)
    slow = waiting(tmp_path / "slow")
    assert slow > 0.5 and fast < slow / 2, (slow, fast)
