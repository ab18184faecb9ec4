"""A tiny MAE on synthetic images, shared by the tests of evaluation tasks."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

import mim_jax
from mim_jax.contract import Objective, Variables
from mim_jax.evaluation import Evaluator
from tests.evaluation.meshes import mesh_of
from tests.tiny import tiny_config


@dataclasses.dataclass
class Subject:
    """Something to evaluate."""

    config: ConfigDict

    @functools.cached_property
    def objective(self) -> Objective:
        """The method."""
        return mim_jax.create(self.config)

    @functools.cached_property
    def variables(self) -> Variables:
        """Random ones."""
        return jax.jit(lambda: self.objective.init(jax.random.key(self.config.seed), self.objective.batch_spec()))()

    def evaluator(self, devices: int = 8, **overrides: Any) -> Evaluator:
        """An evaluator of the subject, config keys of `evaluation` and `data` changed as given by dotted name."""
        config = mim_jax.resolve(self.config)
        for name, value in overrides.items():
            mim_jax.config.override(config, name.replace("__", "."), value)
        return Evaluator(self.objective, config, mesh_of(devices))


def make_subject(method: str, **overrides: Any) -> Subject:
    """A tiny run of a method: one block, 16 patches, 100 synthetic images."""
    small = {"data.source": "synthetic:100", "evaluation.tasks": (), "image_size": 16, "model.depth": 1}
    return Subject(tiny_config(method, {**small, **overrides}))


@pytest.fixture(scope="session")
def mae() -> Subject:
    return make_subject("mae")
