"""A training step of any objective on any mesh, without data or a work directory."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

import mim_jax
from mim_jax.training import schedules, sharding
from mim_jax.training.duration import RunLength
from mim_jax.training.optimizer import Rates, make_optimizer
from mim_jax.training.state import TrainState, create_state
from mim_jax.training.step import make_train_step
from tests.tiny import synthetic_batch

NUM_EXAMPLES = 64


def single_device_mesh() -> Mesh:
    """The mesh of a run on one device."""
    return jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1], axis_types=(AxisType.Auto,) * 3)


@dataclasses.dataclass
class TinyRun:
    """A compiled step and a fresh state."""

    config: ConfigDict
    mesh: Mesh

    def __post_init__(self):
        self.objective = mim_jax.create(self.config)
        length = RunLength(NUM_EXAMPLES, self.config.batch_size)
        self.total_steps = length.steps(self.config.duration, "duration")
        self.rates = Rates(
            schedules.learning_rate_schedule(self.config, self.total_steps, length),
            schedules.weight_decay_schedule(self.config, self.total_steps),
        )
        shapes = jax.eval_shape(self.objective.init, jax.random.key(0), self.objective.batch_spec())
        self.optimizer = make_optimizer(self.config, shapes["params"], self.rates)
        self.shapes = jax.eval_shape(self._create)
        self.shardings = sharding.tree_shardings(self.shapes, self.mesh)

    def _create(self) -> TrainState:
        rng = jax.random.key(self.config.seed)
        return create_state(self.objective, self.optimizer, rng, self.objective.batch_spec())

    def state(self) -> TrainState:
        """A fresh state."""
        return jax.jit(self._create, out_shardings=self.shardings)()

    @functools.cached_property
    def step(self):
        """The jitted training step; it does not donate, so states may be compared."""
        function = make_train_step(
            self.objective,
            self.optimizer,
            self.rates,
            seed=self.config.seed,
            total_steps=self.total_steps,
            steps_per_epoch=NUM_EXAMPLES / self.config.batch_size,
            accumulation_steps=self.config.accumulation_steps,
        )
        return jax.jit(function, out_shardings=(self.shardings, None))

    def batch(self, seed: int = 0) -> dict[str, jax.Array]:
        """A random batch on the mesh."""
        batch = synthetic_batch(self.objective, self.config.batch_size, seed)
        return sharding.put_batch(jax.device_get(batch), self.mesh)

    def train(self, steps: int, state: TrainState | None = None, same_batch: bool = False) -> tuple[TrainState, list]:
        """Runs `steps` updates; batch `i` has seed `i`. Returns the state and each step's metrics as floats."""
        state = self.state() if state is None else state
        rows: list[dict[str, Any]] = []
        for step in range(int(state.step), int(state.step) + steps):
            state, metrics = self.step(state, self.batch(0 if same_batch else step))
            rows.append({k: float(v) for k, v in jax.device_get(metrics).items()})
        return state, rows
