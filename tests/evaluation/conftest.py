"""A tiny MAE on synthetic images, shared by the tests of evaluation tasks."""

from __future__ import annotations

import dataclasses
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
    objective: Objective
    variables: Variables

    def evaluator(self, devices: int = 8, **overrides: Any) -> Evaluator:
        """An evaluator of the subject, config keys of `evaluation` and `data` changed as given by dotted name."""
        config = mim_jax.resolve(self.config)
        for name, value in overrides.items():
            mim_jax.config.override(config, name.replace("__", "."), value)
        return Evaluator(self.objective, config, mesh_of(devices))


def make_subject(method: str, **overrides: Any) -> Subject:
    """A randomly initialised tiny run of a method."""
    config = tiny_config(method, {"data.source": "synthetic:100", "evaluation.tasks": (), **overrides})
    objective = mim_jax.create(config)
    variables = jax.jit(lambda: objective.init(jax.random.key(0), objective.batch_spec()))()
    return Subject(config, objective, variables)


@pytest.fixture(scope="session")
def mae() -> Subject:
    return make_subject("mae")
