"""Training runs as real processes: the same tiny MAE run, started by its command line."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from mim_jax.training.checkpoint import load_run
from tests.tiny import ROOT

CONFIG = "configs/mae_fashion_mnist.py"
SMALL = {
    "data.source": "synthetic:64",
    "batch_size": 16,
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "decoder.width": 16,
    "decoder.depth": 1,
    "decoder.heads": 2,
    "duration": "8 steps",
    "schedule.warmup": "2 steps",
    "checkpoint.every": "2 steps",
    "log.every": "1 steps",
    "log.tensorboard": False,
    "evaluation.every": None,
}

# What one launch compiles, the next finds here; a third of a launch's time.
_CACHE = tempfile.TemporaryDirectory(prefix="mim_jax-tests-")
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": _CACHE.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def command(workdir: pathlib.Path, overrides: dict | None = None, *flags: str, module: str = "mim_jax.train") -> list:
    """The command line of the tiny run in `workdir`; `module` may be a wrapper of `mim_jax.train`."""
    changes = {**SMALL, **(overrides or {})}
    return [
        sys.executable,
        "-m",
        module,
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in changes.items()),
        *flags,
    ]


def launch(arguments: list, devices: int = 1, environment: dict | None = None, **kwargs) -> subprocess.Popen:
    """Starts a process on simulated devices; its output, errors included, is read by `finish`."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    env = {**os.environ, **_ENVIRONMENT, "XLA_FLAGS": flags, **(environment or {})}
    return subprocess.Popen(
        arguments, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs
    )


def finish(process: subprocess.Popen, seconds: float = 300) -> tuple[int, str]:
    """Exit code and output of a process that ends by itself."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise TimeoutError(f"The process did not end within {seconds} s; it had printed:\n{output[-3000:]}") from None
    return process.returncode, output


def run(arguments: list, devices: int = 1, **kwargs) -> tuple[int, str]:
    """Exit code and output of `launch(arguments, ...)`."""
    return finish(launch(arguments, devices, **kwargs))


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rows(workdir: pathlib.Path) -> list[dict]:
    """The rows of `metrics.jsonl`; a last line that is still being written is left out."""
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def losses(workdir: pathlib.Path) -> dict[int, float]:
    """The logged loss by step."""
    return {row["step"]: row["loss"] for row in rows(workdir) if "loss" in row}


def wait_for_step(workdir: pathlib.Path, step: int, seconds: float = 200.0) -> None:
    """Returns once `step` is logged."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = rows(workdir)
        if found and found[-1]["step"] >= step:
            return
        time.sleep(0.02)
    raise TimeoutError(f"{workdir} did not reach step {step}.")


def assert_same_variables(one: pathlib.Path, other: pathlib.Path) -> None:
    """The newest checkpoints of two runs hold the same variables, bit for bit."""
    leaves = [jax.tree.leaves(load_run(workdir).variables) for workdir in (one, other)]
    assert all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))
