"""What a config computes, without data or a work directory: objective, optimiser, state and step."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mim_jax.config import create
from mim_jax.contract import Objective
from mim_jax.training import schedules
from mim_jax.training.duration import RunLength
from mim_jax.training.optimizer import Rates, make_optimizer
from mim_jax.training.sharding import check_batch_size, on_mesh, tree_shardings
from mim_jax.training.state import TrainState, create_state
from mim_jax.training.step import StepFunction, make_train_step


class Program:
    """The computation of a run on a mesh. Nothing is compiled or allocated before it is asked for."""

    def __init__(self, config: ConfigDict, mesh: Mesh, num_examples: int):
        """`num_examples`: of the training split, in which epochs are counted.

        Raises:
          ConfigError: the config cannot be run as it is.
        """
        self.config, self.mesh = config, mesh
        check_batch_size(config.batch_size, mesh, config.accumulation_steps)
        self.objective: Objective = create(config)
        self.length = RunLength(num_examples, config.batch_size)
        self.total_steps = self.length.steps(config.duration, "duration")
        self.rates = Rates(
            schedules.learning_rate_schedule(config, self.total_steps, self.length),
            schedules.weight_decay_schedule(config, self.total_steps),
        )
        params = jax.eval_shape(self.objective.init, jax.random.key(0), self.objective.batch_spec())["params"]
        self.optimizer = make_optimizer(config, params, self.rates, getattr(self.objective, "encoder", None))

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """The state's shapes with the shardings they have on the mesh."""
        shapes = jax.eval_shape(self._create_state)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, tree_shardings(shapes, self.mesh)
        )

    @property
    def shardings(self) -> TrainState:
        """The state's shardings."""
        return jax.tree.map(lambda x: x.sharding, self.abstract_state)

    def fresh_state(self) -> TrainState:
        """A state at step 0, initialised from the config's seed."""
        return jax.jit(self._create_state, out_shardings=self.shardings)()

    def step_function(self, stage: Objective | None = None) -> StepFunction:
        """The training step of the objective, or of one of its stages (`Objective.stage`)."""
        return make_train_step(
            self.objective if stage is None else stage,
            self.optimizer,
            self.rates,
            seed=self.config.seed,
            total_steps=self.total_steps,
            steps_per_epoch=self.length.steps_per_epoch,
            accumulation_steps=self.config.accumulation_steps,
            spike_factor=self.config.spike_factor,
            log_every=self.length.steps(self.config.log.every, "log.every"),
        )

    def jitted_step(self, stage: Objective | None = None, *, donate: bool = True) -> Any:
        """`step_function`, jitted for the mesh. With `donate`, the state passed in is used up."""
        function = on_mesh(self.step_function(stage), self.mesh)
        return jax.jit(function, donate_argnums=0 if donate else (), out_shardings=(self.shardings, None))

    def _create_state(self) -> TrainState:
        return create_state(
            self.objective, self.optimizer, jax.random.key(self.config.seed), self.objective.batch_spec()
        )
