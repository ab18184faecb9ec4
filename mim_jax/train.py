"""Trains what a config file describes.

    python -m mim_jax.train --config=configs/mae_fashion_mnist.py --workdir=runs/mae [--config.optimizer.lr=1e-3 ...]

The same command resumes an interrupted run. Exit codes: 0 done, 2 the config, the data or the checkpoints cannot be
used, 75 pre-empted after saving, 76 nothing moved for `watchdog_minutes` or the processes did not all start (after
both, start again), 1 anything else.
"""

from __future__ import annotations

import pathlib

import jax
from absl import flags
from ml_collections import ConfigDict

from mim_jax.cli import config_from_command_line, define_process_flags, join_processes, run_main
from mim_jax.errors import ConfigError
from mim_jax.evaluation import Evaluator
from mim_jax.interop import import_with_report
from mim_jax.training.loop import BatchSource, Trainer
from mim_jax.training.state import TrainState


def train(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    allow_config_change: bool = False,
    batches: BatchSource | None = None,
) -> TrainState:
    """Trains, or goes on with, the run in `workdir` and returns its final state; see `Trainer` for the arguments."""
    keep_compilations(pathlib.Path(workdir))
    trainer = Trainer(
        config,
        workdir,
        allow_config_change=allow_config_change,
        batches=batches,
        make_evaluator=Evaluator,
        import_weights=import_with_report,
    )
    return trainer.run()


def keep_compilations(workdir: pathlib.Path) -> None:
    """Has JAX keep what takes it over a second to compile in `<workdir>/compilation_cache`, for the next start.

    A place chosen by the user ($JAX_COMPILATION_CACHE_DIR) stays.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(workdir.expanduser().absolute() / "compilation_cache"))


def define_flags() -> None:
    """Defines the command line's flags. Not on import: `mim_jax.evaluate` has flags of the same names."""
    flags.DEFINE_string("workdir", None, "Where checkpoints, logs and pictures go; created if missing.")
    flags.DEFINE_bool("allow_config_change", False, "Resume although lr, schedule, duration or data have changed.")
    define_process_flags()


def main(config_path: str | None, overrides: dict[str, str]) -> None:
    """Sets up JAX's processes and trains what the command line asks for."""
    given = flags.FLAGS
    config = config_from_command_line(config_path, overrides)
    if given.workdir is None:
        raise ConfigError("Give a directory for the run: --workdir=runs/NAME")
    if "://" in given.workdir:
        raise ConfigError(f"--workdir is {given.workdir}, which is no directory; mount the bucket and give its path.")
    join_processes()
    train(config, given.workdir, allow_config_change=given.allow_config_change)


if __name__ == "__main__":
    define_flags()
    run_main(main)
