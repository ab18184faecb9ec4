"""What an evaluation task is, and how tasks are found."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pathlib
import pkgutil
from typing import Any

from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.evaluation.bench import Bench, Snapshot


@dataclasses.dataclass(frozen=True)
class Result:
    """What a task found out about a snapshot."""

    metrics: dict[str, float]  # by name, without the task's
    complete: bool  # every example of the splits the task is about was used
    details: dict[str, Any] = dataclasses.field(default_factory=dict)  # facts worth recording, such as set sizes
    files: tuple[pathlib.Path, ...] = ()  # pictures written


class Task:
    """One evaluation, set up for a run. Its settings are `config.evaluation.<name>`, where `name` is its module's.

    A module under `mim_jax/evaluation/tasks/` defines exactly one public subclass; nothing else lists it.
    """

    def __init__(self, bench: Bench):
        """Checks that the evaluation is possible; raises ConfigError if it is not."""
        self.bench = bench
        self.settings = bench.config.evaluation[self.name()]

    @classmethod
    def name(cls) -> str:
        """The name of the module the task is defined in."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def default_config(cls) -> ConfigDict:
        """The task's settings with their defaults."""
        return ConfigDict()

    def run(self, snapshot: Snapshot) -> Result:
        """Evaluates the snapshot's weights.

        Every process calls this and gets the same numbers; only the first one writes files.
        """
        raise NotImplementedError


def task_names() -> list[str]:
    """Names of all tasks, which are those of the modules under `mim_jax/evaluation/tasks/`."""
    package = importlib.import_module("mim_jax.evaluation.tasks")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def task_class(name: str) -> type[Task]:
    """The task called `name`.

    Raises:
      ConfigError: there is none; the message names those that exist.
    """
    if name not in task_names():
        raise ConfigError(f"There is no evaluation task {name!r}; known: {', '.join(task_names())}.")
    module = importlib.import_module(f"mim_jax.evaluation.tasks.{name}")
    found = [
        value
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, Task)
        and value.__module__ == module.__name__
        and not key.startswith("_")
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define exactly one public Task subclass, not {len(found)}.")
    return found[0]
