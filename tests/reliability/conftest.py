"""Finished tiny runs to copy and then to damage."""

import shutil

import pytest

from mim_jax.training.loop import Trainer
from tests.tiny import tiny_config

# Wide enough for most of a checkpoint's bytes to be those of arrays.
SETTINGS = {"checkpoint.every": "2 steps", "checkpoint.keep": 3, "model.width": 64, "model.depth": 1}


def run_to(steps: int, workdir, overrides=None, **arguments):
    """Trains the tiny MAE run in this process until `steps`."""
    config = tiny_config("mae", {**SETTINGS, **(overrides or {}), "duration": f"{steps} steps"})
    return Trainer(config, workdir, allow_config_change=True, **arguments).run()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run of six steps with checkpoints 2, 4 and 6, for reading only."""
    workdir = tmp_path_factory.mktemp("finished")
    run_to(6, workdir)
    return workdir


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run")
