"""Evaluates a run.

    python -m mim_jax.evaluate --workdir=RUN --task=knn,linear [--step=N] [--random_init]
                               [--config.evaluation.knn.k="(10, 20)" ...]

Prints a table, puts pictures into RUN/evaluation and appends a row per task to RUN/evaluations.jsonl. Exit codes: 0
done, 2 the run, the data or the request cannot be used, 1 anything else.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

import mim_jax
from mim_jax.cli import define_process_flags, join_processes, run_main
from mim_jax.config import override, parse_value
from mim_jax.contract import Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.evaluation import Evaluator, Result, task_names
from mim_jax.evaluation.records import append_rows
from mim_jax.training.checkpoint import load_run, load_run_config
from mim_jax.training.sharding import make_mesh, replicated

# Sections that say where and how to evaluate; all others belong to the run that was trained.
_FREE_TO_CHANGE = ("evaluation", "data", "compute", "mesh", "log")


def evaluate(
    workdir: str | pathlib.Path,
    tasks: Sequence[str],
    *,
    step: int | None = None,
    random_init: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Result]:
    """Evaluates a run and appends a row per task to `<workdir>/evaluations.jsonl`.

    Args:
      workdir: the run's directory.
      tasks: names of evaluations; see `mim_jax/evaluation/tasks/`.
      step: which checkpoint; None: the newest.
      random_init: evaluate the same architecture with the weights the run's seed gives it, which needs no checkpoint.
      overrides: config values by dotted name, of the sections evaluation, data, compute, mesh and log.

    Returns:
      What each task found, by name.

    Raises:
      ConfigError, DataError: the evaluation cannot be done as asked.
      CheckpointError: there is no such run or step, or it is damaged.
    """
    if random_init and step is not None:
        raise ConfigError("A random initialisation has no checkpoint; leave out --step or --random_init.")
    workdir = pathlib.Path(workdir).expanduser()
    config = _configure(load_run_config(workdir), tasks, overrides or {})
    mesh = make_mesh(config.mesh)
    # The evaluator comes first: it finds what cannot be done before a checkpoint of gigabytes is read.
    objective = mim_jax.create(config)
    evaluator = Evaluator(objective, config, mesh)
    if random_init:
        variables, step, folder = _initial_variables(objective, config.seed, mesh), 0, "evaluation/random_init"
    else:
        run = load_run(workdir, step, config)
        variables, step, folder = run.variables, run.step, "evaluation"
    results = evaluator.evaluate(variables, tasks, step=step, out_dir=workdir / folder)
    if jax.process_index() == 0:
        _append(workdir / "evaluations.jsonl", results, step, random_init, config)
    return results


def table(results: Mapping[str, Result]) -> str:
    """The numbers and files of `results` as aligned lines of text."""
    rows = []
    for task, result in results.items():
        note = "" if result.complete else "  (on a part of the data)"
        rows += [(f"{task}/{name}", f"{value:.4g}{note}") for name, value in result.metrics.items()]
        rows += [(task, str(path)) for path in result.files]
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def define_flags() -> None:
    """Defines the command line's flags. Not on import: `mim_jax.train` has flags of the same names."""
    flags.DEFINE_string("workdir", None, "The run's directory.")
    flags.DEFINE_list("task", [], f"One or more of {', '.join(task_names())}, separated by commas.")
    flags.DEFINE_integer("step", None, "Which checkpoint; by default the newest.")
    flags.DEFINE_bool("random_init", False, "Evaluate the same architecture, randomly initialised.")
    define_process_flags()


def main(config_path: str | None, overrides: dict[str, str]) -> None:
    """Evaluates what the flags ask for and prints a table."""
    given = flags.FLAGS
    if config_path:
        raise ConfigError("An evaluation reads the run's own config; give --workdir, and no --config.")
    if given.workdir is None or not given.task:
        raise ConfigError(f"Give a run and a task, --workdir=RUN --task=TASK; tasks are {', '.join(task_names())}.")
    join_processes()
    config = load_run_config(given.workdir) if overrides else None
    results = evaluate(
        given.workdir,
        given.task,
        step=given.step,
        random_init=given.random_init,
        overrides={name: parse_value(config, name, text) for name, text in overrides.items()},
    )
    if jax.process_index() == 0:
        print(table(results))


def _configure(config: ConfigDict, tasks: Sequence[str], overrides: Mapping[str, Any]) -> ConfigDict:
    for name, value in overrides.items():
        if name.partition(".")[0] not in _FREE_TO_CHANGE:
            raise ConfigError(
                f"{name} cannot be changed in an evaluation: it belongs to how the run was trained; only keys of "
                f"{', '.join(_FREE_TO_CHANGE)} can."
            )
        override(config, name, value)
    override(config, "evaluation.tasks", tuple(tasks))
    return config


def _initial_variables(objective: Objective, seed: int, mesh: jax.sharding.Mesh) -> Variables:
    spec = objective.batch_spec()
    return jax.jit(lambda: objective.init(jax.random.key(seed), spec), out_shardings=replicated(mesh))()


def _append(
    path: pathlib.Path, results: Mapping[str, Result], step: int, random_init: bool, config: ConfigDict
) -> None:
    rows = [
        {
            "task": task,
            "step": step,
            "random_init": random_init,
            "complete": result.complete,
            "metrics": result.metrics,
            "details": result.details,
            "settings": {"source": config.data.source, **config.evaluation[task].to_dict()},
            "files": [str(file) for file in result.files],
        }
        for task, result in results.items()
    ]
    append_rows(path, rows)


if __name__ == "__main__":
    define_flags()
    run_main(main)
