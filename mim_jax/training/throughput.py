"""How fast the machine could go: peak FLOP/s by device, known or measured."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp

# Dense bfloat16 FLOP/s of one device as its maker states it.
_PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


@functools.lru_cache(maxsize=4)
def peak_flops(dtype: str) -> float:
    """Peak FLOP/s of all devices together: the maker's figure for accelerators in bfloat16, else a measured matmul."""
    kind = jax.devices()[0].device_kind
    known = [peak for name, peak in _PEAKS.items() if kind.startswith(name)]
    if known and dtype == "bfloat16":
        return known[0] * jax.device_count()
    # Simulated CPU devices share the cores, so their number does not multiply the measurement.
    devices = 1 if jax.default_backend() == "cpu" else jax.device_count()
    return measured_matmul_flops(dtype) * devices


def measured_matmul_flops(dtype: str, size: int | None = None) -> float:
    """FLOP/s of a square matrix product on one device, the best of a few tries."""
    size = size or (1024 if jax.default_backend() == "cpu" else 8192)
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    product(x, x).block_until_ready()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def compiled_flops(compiled: jax.stages.Compiled) -> float | None:
    """FLOPs of one call over all devices by XLA's own count; None where the backend does not say.

    A scanned loop's body is counted once by XLA, so with `compute.scan` this understates.
    """
    analysis = compiled.cost_analysis()
    if isinstance(analysis, list):
        analysis = analysis[0] if analysis else None
    flops = (analysis or {}).get("flops")
    return float(flops) * jax.device_count() if flops and flops > 0 else None
