"""A training step of any objective on any mesh, without data or a work directory; and a run without training."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from mim_jax.training import sharding
from mim_jax.training.checkpoint import Checkpointer
from mim_jax.training.loop import Trainer
from mim_jax.training.program import Program
from mim_jax.training.state import TrainState
from tests.tiny import synthetic_batch

NUM_EXAMPLES = 64


def single_device_mesh() -> Mesh:
    """The mesh of a run on one device."""
    return jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1], axis_types=(AxisType.Auto,) * 3)


def untrained_run(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
    """Leaves in `workdir` what a run has there before its first step, for which none need be compiled."""
    trainer, checkpointer = Trainer(config, workdir), Checkpointer(workdir)
    trainer._write_config()
    checkpointer.save(trainer.program.fresh_state(), trainer._meta())
    checkpointer.close()
    return workdir


class TinyRun(Program):
    """A program whose step can be taken without a loop. What it compiles is compiled once."""

    def __init__(self, config: ConfigDict, mesh: Mesh):
        super().__init__(config, mesh, NUM_EXAMPLES)

    @functools.cached_property
    def step(self):
        """The jitted training step; it does not donate, so states may be compared."""
        return self.jitted_step(donate=False)

    @functools.cached_property
    def _fresh_state(self) -> TrainState:
        return super().fresh_state()

    def fresh_state(self) -> TrainState:
        """The same state at every call: no step donates it."""
        return self._fresh_state

    def batch(self, seed: int = 0) -> dict[str, jax.Array]:
        """A random batch on the mesh."""
        batch = synthetic_batch(self.objective, self.config.batch_size, seed)
        return sharding.put_batch(jax.device_get(batch), self.mesh)

    def train(self, steps: int, state: TrainState | None = None, same_batch: bool = False) -> tuple[TrainState, list]:
        """Runs `steps` updates; batch `i` has seed `i`. Returns the state and each step's metrics as floats."""
        state = self.fresh_state() if state is None else state
        rows: list[dict[str, Any]] = []
        for step in range(int(state.step), int(state.step) + steps):
            state, metrics = self.step(state, self.batch(0 if same_batch else step))
            rows.append({k: float(v) for k, v in jax.device_get(metrics).items()})
        return state, rows
