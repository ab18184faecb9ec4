"""The same config and seed give the same run, bit for bit, in this process and in another; another seed does not."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest

from mim_jax.training.checkpoint import load_run
from mim_jax.training.loop import Trainer
from tests.processes import assert_same_variables, command, rows, run
from tests.tiny import METHODS, tiny_config

TIMING = ("images_per_second", "step_seconds", "data_wait_share", "flops_per_second", "peak_share")
SHORT = {
    "duration": "3 steps",
    "schedule.warmup": "1 steps",
    "checkpoint.every": "3 steps",
    "log.progress": False,
}


def untimed(workdir: pathlib.Path) -> list[dict]:
    """The logged rows without what depends on the clock."""
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows(workdir)]


def differs(one: pathlib.Path, other: pathlib.Path) -> bool:
    pairs = zip(*(jax.tree.leaves(load_run(workdir).variables) for workdir in (one, other)), strict=True)
    return any(not np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("method", METHODS)
def test_two_trainers_of_one_seed_are_one_run(method: str, tmp_path: pathlib.Path):
    for name in ("first", "second"):
        Trainer(tiny_config(method, SHORT), tmp_path / name).run()
    first, second = (untimed(tmp_path / name) for name in ("first", "second"))
    assert len(first) == 3 and "loss" in first[0]
    assert first == second
    assert_same_variables(tmp_path / "first", tmp_path / "second")


def test_another_seed_is_another_run(tmp_path: pathlib.Path):
    for name, seed in (("one", 0), ("other", 1)):
        Trainer(tiny_config("mae", {**SHORT, "seed": seed}), tmp_path / name).run()
    one, other = (untimed(tmp_path / name) for name in ("one", "other"))
    assert all(a["loss"] != b["loss"] for a, b in zip(one, other, strict=True))
    assert differs(tmp_path / "one", tmp_path / "other")


def test_two_processes_of_one_seed_are_one_run(tmp_path: pathlib.Path):
    # Nothing may depend on the order in which strings are hashed, nor may the second find what the first compiled.
    for name, hash_seed in (("first", "1"), ("second", "2")):
        environment = {"PYTHONHASHSEED": hash_seed, "JAX_ENABLE_COMPILATION_CACHE": "false"}
        code, output = run(command(tmp_path / name), environment=environment)
        assert code == 0, output
    assert untimed(tmp_path / "first") == untimed(tmp_path / "second")
    assert_same_variables(tmp_path / "first", tmp_path / "second")
