"""Trains what a config file describes.

    python -m mim_jax.train --config=configs/mae_fashion_mnist.py --workdir=runs/mae [--config.optimizer.lr=1e-3 ...]

The same command resumes an interrupted run. Exit codes: 0 done, 2 the config or data cannot be used, 75 preempted after
saving (start again), 1 anything else.
"""

from __future__ import annotations

import jax
from absl import flags

from mim_jax.cli import config_from_command_line, run_main
from mim_jax.errors import ConfigError

_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, logs and pictures go; created if missing.")
_ALLOW = flags.DEFINE_bool(
    "allow_config_change", False, "Resume although lr, schedule, duration or data differ from the checkpoint's."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, to run several processes by hand.")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: how many processes there are.")
_PROCESS = flags.DEFINE_integer("process_id", None, "With --coordinator: which one this is.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Find the other processes from the cluster (TPU pod, SLURM, ...)."
)


def main(config_path: str | None, overrides: dict[str, str]) -> None:
    """Sets up JAX's processes and trains."""
    config = config_from_command_line(config_path, overrides)
    if _WORKDIR.value is None:
        raise ConfigError("Give a directory for the run: --workdir=runs/NAME")
    if _COORDINATOR.value is not None:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    elif _DISTRIBUTED.value:
        jax.distributed.initialize()
    # After jax.distributed: setting up a run touches devices.
    from mim_jax.training.loop import Trainer

    Trainer(config, _WORKDIR.value, allow_config_change=_ALLOW.value).run()


if __name__ == "__main__":
    run_main(main)
