"""Measures the memory of MAE's training step for each way of executing it, and writes docs/memory.md.

    python tools/memory_table.py            # compiles on one CPU device, runs nothing; about five minutes
    python tools/memory_table.py --out -    # to the terminal

What is measured is the plan of XLA's CPU compiler for the whole step, as the training loop compiles it.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Memory is planned before machine code is made, so the code need not be good: half the time, the same numbers.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

import mim_jax
from mim_jax.training.program import Program
from mim_jax.training.sharding import batch_sharding, make_mesh

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = {"ViT-B/16": "configs/mae_vit_b16_in1k.py", "ViT-L/16": "configs/mae_vit_l16_in1k.py"}
BATCH_SIZE = 64
_NUM_EXAMPLES = 1_281_167  # of ImageNet-1k; only schedules depend on it
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Execution:
    """One way to execute a step; it changes nothing in what is computed, beyond rounding."""

    model: str
    dtype: str = "float32"
    scan: bool = True
    remat: str = "none"
    accumulation_steps: int = 1
    moment_dtype: str = "float32"

    def config(self) -> ConfigDict:
        """The model's published recipe, executed this way."""
        overrides = {
            "batch_size": BATCH_SIZE,
            "compute.dtype": self.dtype,
            "compute.scan": self.scan,
            "compute.remat": self.remat,
            "accumulation_steps": self.accumulation_steps,
            "optimizer.moment_dtype": self.moment_dtype,
        }
        return mim_jax.load_config(str(ROOT / CONFIGS[self.model]), overrides)


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a compiled step needs, in bytes, and how long its compilation took."""

    temporary: int  # activations, gradients and scratch: alive during a step
    arguments: int  # the state and a batch: alive always
    compile_seconds: float


def step_memory(config: ConfigDict, mesh: Mesh, num_examples: int = _NUM_EXAMPLES) -> Memory:
    """Compiles the training step of `config` for a mesh and reads the plan for one of its devices.

    Raises:
      ConfigError: the config cannot be run.
    """
    program = Program(config, mesh, num_examples)
    sharding = batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding)
        for name, spec in program.objective.batch_spec(config.batch_size).items()
    }
    start = time.perf_counter()
    plan = program.jitted_step().lower(program.abstract_state, batch).compile().memory_analysis()
    seconds = time.perf_counter() - start
    return Memory(plan.temp_size_in_bytes, plan.argument_size_in_bytes, seconds)


def executions() -> Iterator[Execution]:
    """The rows of the table; between neighbours as little differs as can be."""
    remats = ("none", "dots", "full")
    for remat in remats:
        yield Execution("ViT-B/16", scan=False, remat=remat)
    for model, steps, remat in itertools.product(CONFIGS, (1, 4), remats):
        yield Execution(model, remat=remat, accumulation_steps=steps)
    for remat in ("none", "full"):
        yield Execution("ViT-B/16", "bfloat16", remat=remat)
    for model in CONFIGS:
        yield Execution(model, remat="full", accumulation_steps=4, moment_dtype="bfloat16")


def markdown(rows: Iterable[tuple[Execution, Memory]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| model | compute | depth | remat | micro-batches | 1st moment | temporary MiB | state MiB | compile s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for way, memory in rows:
        cells = (
            way.model,
            way.dtype,
            "scanned" if way.scan else "looped",
            way.remat,
            str(way.accumulation_steps),
            way.moment_dtype,
            f"{memory.temporary / _MIB:,.0f}",
            f"{memory.arguments / _MIB:,.0f}",
            f"{memory.compile_seconds:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measure(ways: Iterable[Execution], report: Callable[[str], None]) -> Iterator[tuple[Execution, Memory]]:
    """Compiles one step after another; nothing of one is alive when the next is compiled."""
    for way in ways:
        config = way.config()
        memory = step_memory(config, make_mesh(config.mesh))
        report(f"{way}: {memory.temporary / _MIB:,.0f} MiB, compiled in {memory.compile_seconds:.0f} s")
        yield way, memory
        jax.clear_caches()


def replace_table(document: str, table: str) -> str:
    """`document` with what stands between its two `memory_table` markers replaced; raises ValueError without them."""
    head, _, rest = document.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not end:
        raise ValueError(f"The document lacks the lines {_BEGIN} and {_END}, between which the table goes.")
    return f"{head}{_BEGIN}\n{table}{_END}{tail}"


_BEGIN, _END = "<!-- memory_table -->", "<!-- /memory_table -->"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every row and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", default=str(ROOT / "docs" / "memory.md"), help="document to update; -: the terminal")
    given = parser.parse_args(arguments)
    rows = list(measure(executions(), report=lambda line: print(line, flush=True)))
    table = f"jax {jax.__version__}, {jax.device_count()} {jax.default_backend()} device, batch {BATCH_SIZE}\n\n"
    table += markdown(rows)
    if given.out == "-":
        print(table)
        return
    out = pathlib.Path(given.out)
    out.write_text(replace_table(out.read_text(), table))


if __name__ == "__main__":
    main()
