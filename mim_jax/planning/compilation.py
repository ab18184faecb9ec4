"""The real training step, compiled for devices that are simulated, and what its compiled form says."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from mim_jax.planning.collectives import Collective, collectives
from mim_jax.planning.hlo import Instruction, Module
from mim_jax.training.flops import count_flops
from mim_jax.training.program import Program
from mim_jax.training.sharding import batch_sharding

_PARTITIONED = "*after_spmd-partitioning*.txt"


@dataclasses.dataclass(frozen=True)
class Usage:
    """What one step uses. Bytes are those of one device unless they say otherwise."""

    parameters: int
    params_bytes: int  # of all devices together, each parameter once
    optimizer_bytes: int  # likewise
    state_bytes: int  # of all devices together, each array once
    state_bytes_per_device: int
    batch_bytes_per_device: int
    temporary_bytes: int  # XLA:CPU's plan of activations, gradients and gathered parameters
    flops: float  # matrix products and convolutions of all devices, from the traced step
    flops_per_device: float  # matrix products as partitioned, on one device
    product_bytes: float  # operands and results of these products on one device
    collectives: tuple[Collective, ...]
    compile_seconds: float


def compile_step(program: Program) -> Usage:
    """Traces, partitions and compiles `program`'s step from abstract arrays; nothing of its size is allocated.

    Numbers of products and collectives are read from the program as XLA's SPMD partitioner writes it, where dtypes are
    still those asked for: XLA:CPU, which has no bfloat16 products, widens them later. The temporaries are counted after
    that, which makes them an upper estimate for accelerators.
    """
    state, batch = program.abstract_state, abstract_batch(program)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory, _compiling_anew():
        options = {"xla_dump_to": directory, "xla_dump_hlo_pass_re": "spmd-partitioning"}
        compiled = program.jitted_step().lower(state, batch).compile(compiler_options=options)
        seconds = time.perf_counter() - start
        module = Module(_partitioned(pathlib.Path(directory)))
    products = [(i, computation, times) for i, computation, times in module.executed() if i.opcode == "dot"]
    params = state.variables["params"]
    return Usage(
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(params)),
        params_bytes=total_bytes(params),
        optimizer_bytes=total_bytes(state.opt_state),
        state_bytes=total_bytes(state),
        state_bytes_per_device=bytes_per_device(state),
        batch_bytes_per_device=bytes_per_device(batch),
        temporary_bytes=compiled.memory_analysis().temp_size_in_bytes,
        flops=count_flops(program.step_function(), state, batch),
        flops_per_device=sum(times * _product_flops(i, c) for i, c, times in products),
        product_bytes=sum(times * _product_bytes(i, c) for i, c, times in products),
        collectives=tuple(collectives(module, program.mesh.size)),
        compile_seconds=seconds,
    )


@contextlib.contextmanager
def _compiling_anew() -> Iterator[None]:
    """JAX keeps no compiled programs meanwhile: of one that is found in a cache XLA writes nothing."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX asks about the setting once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def abstract_batch(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a global batch with the shardings it has on the mesh."""
    spec = program.objective.batch_spec(program.config.batch_size)
    sharding = batch_sharding(program.mesh)
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for name, x in spec.items()}


def total_bytes(tree: Any) -> int:
    """Bytes of a tree of (abstract) arrays."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def bytes_per_device(tree: Any) -> int:
    """Bytes that each device holds of a tree of (abstract) arrays with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _partitioned(directory: pathlib.Path) -> str:
    # The step is compiled last; helpers compiled on its way leave smaller dumps. On one device nothing is partitioned.
    files = sorted(directory.glob(_PARTITIONED), key=lambda file: file.stat().st_size)
    if not files:
        raise RuntimeError("XLA wrote no partitioned program; has this version renamed its SPMD pass?")
    return files[-1].read_text()


def _product_flops(dot: Instruction, computation: dict[str, Instruction]) -> float:
    left = computation[dot.operands[0]].shape
    contracted = dot.attributes.partition("lhs_contracting_dims={")[2].partition("}")[0]
    return 2.0 * math.prod(dot.shape) * math.prod(left[int(dim)] for dim in contracted.split(",") if dim)


def _product_bytes(dot: Instruction, computation: dict[str, Instruction]) -> float:
    return dot.num_bytes + sum(computation[name].num_bytes for name in dot.operands)
