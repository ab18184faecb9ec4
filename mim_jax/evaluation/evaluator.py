"""Runs evaluation tasks on snapshots of a run's weights, from the training loop or alone."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

from jax.sharding import Mesh
from ml_collections import ConfigDict

from mim_jax.contract import Objective, Variables
from mim_jax.evaluation.bench import Bench, Snapshot
from mim_jax.evaluation.task import Result, Task, task_class, task_names
from mim_jax.fields import optional


class Evaluator:
    """The evaluations of one run. What they compile is kept from one snapshot to the next."""

    def __init__(self, objective: Objective, config: ConfigDict, mesh: Mesh):
        """Sets up `config.evaluation.tasks`.

        Raises:
          ConfigError: a task is unknown, or the objective or the data cannot do what it needs.
          DataError: the data is missing.
        """
        self._bench = Bench(objective, config, mesh)
        self._tasks: dict[str, Task] = {}
        for name in config.evaluation.tasks:
            self._task(name)

    def run(
        self, variables: Variables, tasks: Iterable[str], *, step: int, out_dir: str | pathlib.Path
    ) -> dict[str, float]:
        """Scalars by name, such as "knn/top1_k20" (percent); pictures go into `out_dir`.

        All processes must call this alike, with variables on the devices of the mesh.
        """
        results = self.evaluate(variables, tasks, step=step, out_dir=out_dir)
        return {f"{task}/{key}": value for task, result in results.items() for key, value in result.metrics.items()}

    def evaluate(
        self, variables: Variables, tasks: Iterable[str], *, step: int, out_dir: str | pathlib.Path
    ) -> dict[str, Result]:
        """As `run`, with everything each task has to say; features that several tasks need are computed once."""
        snapshot = Snapshot(self._bench, variables, step, pathlib.Path(out_dir))
        return {name: self._task(name).run(snapshot) for name in tasks}

    def _task(self, name: str) -> Task:
        if name not in self._tasks:
            self._tasks[name] = task_class(name)(self._bench)
        return self._tasks[name]


def default_config() -> ConfigDict:
    """The `evaluation` section: when and what, and a section of settings for every task there is."""
    config = ConfigDict(
        dict(
            every=optional(str),  # such as "10 epochs"; None: no evaluation during training
            at_start=True,  # with `every`: also before the first step, where the curve of a representation begins
            tasks=("knn",),  # see mim_jax/evaluation/tasks/
            batch_size=256,  # global, of the encoder's forward passes
        )
    )
    for name in task_names():
        config[name] = task_class(name).default_config()
    return config
