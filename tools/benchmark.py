"""Times full pre-training steps, beside PyTorch on the same machine in the same run.

    python tools/benchmark.py --configs=mae_vit_b16_in1k --batch_sizes=8,32 --peers=eager,compile [--json=FILE]
                              [--config.compute.scan=False ...] [--windows=5] [--seconds=5] [--breakdown]

A step is forward, backward and AdamW on synthetic images already on the device. Each contestant is a process of its
own, asleep while another one is measured. They take turns, window by window, so that whatever else the machine does
strikes all alike; a window is as many steps as fill `--seconds`, after one that is not counted, since a process that
has slept first has to get its memory back. The peers are the models of `transformers` with SDPA attention, fused AdamW
and the same dtype (autocast for bfloat16): eager PyTorch and `torch.compile`. MAE's peer has exactly our parameters,
and so has SimMIM's with a Swin Transformer; with a ViT it lacks the relative position bias and layer scale of ours.
SparK's is written in the way of the official code: dense convolutions, multiplied by the mask. Other methods have none.

Weights are random, those of frozen teachers too, whose `weights` are not read; their forward pass is part of the step
and of its FLOPs.

Needs jax, flax, optax, chex and orbax; torch and transformers for the peers (`pip install -e .[bench]`); no TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

# PyTorch needs some of the accelerator's memory too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

import mim_jax
from mim_jax.cli import apply_overrides, run_main
from mim_jax.config import resolve
from mim_jax.errors import ConfigError, TrainingError
from mim_jax.layers.compute import Compute, compute_dtype
from mim_jax.layers.patches import patchify
from mim_jax.masking.token_mask import take_tokens
from mim_jax.training.flops import count_flops
from mim_jax.training.program import Program
from mim_jax.training.sharding import make_mesh, put_batch
from mim_jax.training.throughput import compiled_flops, measured_matmul_flops

ROOT = pathlib.Path(__file__).parents[1]
IMAGENET_EXAMPLES = 1_281_167
OURS = "mim_jax"
PEERS = ("eager", "compile")
PEER_METHODS = ("mae", "simmim", "spark")  # that `benchmark_peers` has models of; it needs torch and transformers


@dataclasses.dataclass
class Work:
    """What a contestant can be asked for, by name. `actions["step"](n)` returns once n steps have really ended."""

    actions: dict[str, Callable[[int], float | None]]
    first_step_seconds: float  # from nothing to the end of the first step
    details: dict[str, Any]


class Contestant:
    """A process that takes steps when told to and otherwise sleeps.

    A process of its own, because the thread pools of JAX and PyTorch slow each other down inside one.
    """

    def __init__(self, name: str, config: ConfigDict):
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, config.to_dict()), daemon=True)
        self._process.start()
        theirs.close()
        self.first_step_seconds, self.details = self._receive()

    def ask(self, action: str, number: int = 1) -> tuple[float, float | None]:
        """Seconds an action took, and what it returned."""
        self._pipe.send((action, number))
        return self._receive()

    def close(self) -> int:
        """Ends the process; returns its peak resident memory in bytes."""
        self._pipe.send(None)
        peak = self._receive()
        self._process.join()
        return peak

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise TrainingError(f"The process of {self.name!r} ended; its own message is above.") from None


def _serve(pipe: Any, name: str, settings: dict[str, Any]) -> None:
    config = resolve(settings)
    work = ours(config) if name == OURS else peer(name, config)
    pipe.send((work.first_step_seconds, work.details))
    while (request := pipe.recv()) is not None:
        action, number = request
        start = time.perf_counter()
        result = work.actions[action](number)
        pipe.send((time.perf_counter() - start, result))
    pipe.send(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def ours(config: ConfigDict) -> Work:
    """Our step as `config` describes it."""
    start = time.perf_counter()
    program = Program(config, make_mesh(config.mesh), IMAGENET_EXAMPLES)
    state, batch = program.fresh_state(), synthetic_batch(program)
    jax.block_until_ready((state, batch))
    compiling = time.perf_counter()
    compiled = program.jitted_step().lower(state, batch).compile()
    compile_seconds = time.perf_counter() - compiling

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = compiled(state, batch)
        loss = float(metrics["loss"])  # waits for the devices
        if not np.isfinite(loss):
            raise FloatingPointError(f"The loss is {loss}; what is measured is no training.")

    run(1)
    first_step_seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    details = {
        "compile_seconds": compile_seconds,
        "flops": count_flops(program.step_function(), state, batch),
        "xla_flops": None if Compute.from_config(config.compute).scans else compiled_flops(compiled),
        "planned_bytes": memory.temp_size_in_bytes + memory.argument_size_in_bytes,
    }
    dtype = compute_dtype(config.compute.dtype)
    actions = {
        "step": run,
        "masking": masking_step(program, state, batch),
        "peak": lambda size: measured_matmul_flops(dtype, size or None),
    }
    return Work(actions, first_step_seconds, details)


def synthetic_batch(program: Program) -> dict[str, jax.Array]:
    """Random values for everything the objective reads from a batch, on the devices."""
    rng = np.random.default_rng(0)
    batch = {}
    for name, spec in program.objective.batch_spec(program.config.batch_size).items():
        is_float = np.issubdtype(spec.dtype, np.floating)
        values = rng.normal(size=spec.shape) if is_float else rng.integers(0, 10, spec.shape)
        batch[name] = values.astype(spec.dtype)
    return put_batch(batch, program.mesh)


def masking_step(program: Program, state: Any, batch: Any) -> Callable[[int], None]:
    """Runs what a step does to choose masks, and to gather the visible patches where it drops the others, alone."""
    clock = mim_jax.Clock.at(state.step, total_steps=program.total_steps, steps_per_epoch=1000.0)
    objective = program.objective

    @jax.jit
    def draw(variables: Any, batch: Any, rng: jax.Array, clock: mim_jax.Clock) -> Any:
        masks = objective.masks(variables, objective.prepare(variables, batch), rng, clock)
        if not isinstance(masks, mim_jax.TokenMask):
            return masks
        return masks, take_tokens(patchify(batch["image"], objective.encoder.patch_size), masks.ids_keep)

    variables = jax.tree.map(np.asarray, jax.device_get(state.variables))

    def run(steps: int) -> None:
        for step in range(steps):
            masks = draw(variables, batch, jax.random.key(step), clock)
        jax.block_until_ready(masks)

    return run


def peer(kind: str, config: ConfigDict) -> Work:
    """PyTorch's step for the same work; `kind` is one of `PEERS`."""
    import benchmark_peers
    import torch

    model = benchmark_peers.build(config)
    start = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    forward = torch.compile(model) if kind == "torch compile" else model
    inputs = benchmark_peers.inputs(config, device)
    half = compute_dtype(config.compute.dtype) == "bfloat16"

    def run(steps: int) -> None:
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext():
                loss = forward(**inputs).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss.item()

    run(1)
    first_step_seconds = time.perf_counter() - start
    return Work({"step": run}, first_step_seconds, {"parameters": sum(p.numel() for p in model.parameters())})


def in_turns(contestants: list[Contestant], windows: int, seconds: float) -> dict[str, list[float]]:
    """Seconds per step of each contestant in each window, the contestants taking turns."""
    steps = {}
    for contestant in contestants:
        contestant.ask("step")
        steps[contestant.name] = max(1, round(seconds / contestant.ask("step")[0]))
    times: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for _ in range(windows):
        for contestant in contestants:
            number = steps[contestant.name]
            contestant.ask("step")
            times[contestant.name].append(contestant.ask("step", number)[0] / number)
    return times


def measure(config: ConfigDict, name: str, peers: list[str], windows: int, seconds: float) -> list[dict[str, Any]]:
    """A row for us and one for each peer, where there are any for the method."""
    kinds = [f"torch {kind}" for kind in peers if config.method in PEER_METHODS]
    contestants = [Contestant(kind, config) for kind in (OURS, *kinds)]
    times = in_turns(contestants, windows, seconds)
    us = contestants[0]
    on_cpu = jax.default_backend() == "cpu"
    peak = us.ask("peak", 2048 if on_cpu else 0)[1] * (1 if on_cpu else jax.device_count())
    us.ask("masking")
    masking_share = us.ask("masking", 20)[0] / 20 / statistics.median(times[OURS])
    flops = us.details.pop("flops")
    rows = []
    for contestant in contestants:
        rates = sorted(config.batch_size / t for t in times[contestant.name])
        median = statistics.median(rates)
        rows.append(
            {
                "config": name,
                "batch_size": config.batch_size,
                "dtype": compute_dtype(config.compute.dtype),
                "name": contestant.name,
                "images_per_second": {"median": median, "min": rates[0], "max": rates[-1], "windows": len(rates)},
                "flops_per_step": flops,
                "peak_share": flops * median / config.batch_size / peak,
                "measured_peak_flops": peak,
                "first_step_seconds": contestant.first_step_seconds,
                **contestant.details,
                "resident_bytes": contestant.close(),
            }
        )
    for row in rows[1:]:
        row["ours_over_this"] = rows[0]["images_per_second"]["median"] / row["images_per_second"]["median"]
    rows[0]["masking_share"] = masking_share
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| config | batch | dtype | who | images/s (min-max) | ours is | of the peak | first step | memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rate = row["images_per_second"]
        ratio = f"{row['ours_over_this']:.2f}x" if "ours_over_this" in row else ""
        memory = f"{row['resident_bytes'] / 1e9:.1f} GB"
        lines.append(
            f"| {row['config']} | {row['batch_size']} | {row['dtype']} | {row['name']} | {rate['median']:.2f} "
            f"({rate['min']:.2f}-{rate['max']:.2f}) | {ratio} | {row['peak_share']:.0%} | "
            f"{row['first_step_seconds']:.1f} s | {memory} |"
        )
    return "\n".join(lines)


def breakdown(rows: list[dict[str, Any]]) -> str:
    """Our rows as Markdown: what a step costs beside the first one's, in FLOPs and as measured, and masks in it."""
    lines = [
        "| config | batch | GFLOP/image | FLOPs, relative | step, relative | measured / counted | masks and gather |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = [row for row in rows if row["name"] == OURS]
    first = {}
    for row in ours:
        batch = row["batch_size"]
        base = first.setdefault(batch, row)
        counted = row["flops_per_step"] / base["flops_per_step"]
        measured = base["images_per_second"]["median"] / row["images_per_second"]["median"]
        lines.append(
            f"| {row['config']} | {batch} | {row['flops_per_step'] / batch / 1e9:.1f} | {counted:.2f} | {measured:.2f} "
            f"| {measured / counted:.2f} | {row['masking_share']:.2%} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the numbers were measured on and with."""
    from importlib import metadata

    versions = {}
    for package in ("jax", "jaxlib", "flax", "torch", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": versions,
        "command": " ".join(["python", *sys.argv]),
    }


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def configurations(overrides: dict[str, str]) -> Iterator[tuple[str, ConfigDict]]:
    """Every config at every batch size the flags ask for, at a constant rate without warm-up."""
    for name in flags.FLAGS.configs:
        for batch_size in flags.FLAGS.batch_sizes:
            path = name if name.endswith(".py") else str(ROOT / "configs" / f"{name}.py")
            config = mim_jax.load_config(path, {"batch_size": int(batch_size), "accumulation_steps": 1})
            yield name, apply_overrides(config, overrides)


def define_flags() -> None:
    """Defines the command line's flags."""
    flags.DEFINE_list("configs", ["mae_vit_b16_in1k"], "Names under configs/, or paths.")
    flags.DEFINE_list("batch_sizes", ["8", "32"], "Images per step.")
    flags.DEFINE_list("peers", list(PEERS), "Of eager and compile; empty for none.")
    flags.DEFINE_integer("windows", 5, "Measurements of each contestant.")
    flags.DEFINE_float("seconds", 5.0, "About how long a window lasts.")
    flags.DEFINE_bool("breakdown", False, "Also compare our steps with the first config's and with what was counted.")
    flags.DEFINE_string("json", None, "Where to write everything that was measured.")


def main(config_path: str | None, overrides: dict[str, str]) -> None:
    """Measures what the flags ask for and prints a table."""
    given = flags.FLAGS
    if config_path:
        raise ConfigError("Give configs by name: --configs=mae_vit_b16_in1k,simmim_vit_b16_in1k")
    unknown = sorted({*given.peers} - {*PEERS})
    if unknown:
        raise ConfigError(f"There is no peer {unknown[0]!r}; choose of {', '.join(PEERS)}.")
    rows = []
    for name, config in configurations(overrides):
        rows += measure(config, name, given.peers, given.windows, given.seconds)
        print(table(rows), flush=True)
    if given.breakdown:
        print(breakdown(rows))
    content = {"machine": machine(), "rows": rows}
    if given.json:
        pathlib.Path(given.json).write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content["machine"], indent=1))


if __name__ == "__main__":
    define_flags()
    run_main(main)
