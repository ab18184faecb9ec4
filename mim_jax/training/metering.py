"""Measuring and tracing a running loop."""

from __future__ import annotations

import contextlib
import pathlib
import time
from typing import Any

import jax

from mim_jax.errors import ConfigError
from mim_jax.training.throughput import peak_flops


class Meter:
    """Speed over the steps since the last reading, evaluation and saving left out."""

    def __init__(self, batch_size: int, stream: Any):
        self._batch_size = batch_size
        self._stream = stream
        self._steps = 0
        self._wait = stream.wait_seconds
        self._started: float | None = None  # the first step compiles, so the clock starts after it
        self._paused = 0.0

    @contextlib.contextmanager
    def paused(self):
        """Time spent inside does not count; a profile shows it as "evaluate or save"."""
        start = time.perf_counter()
        try:
            with jax.profiler.TraceAnnotation("evaluate or save"):
                yield
        finally:
            self._paused += time.perf_counter() - start

    def read(self, steps: int, flops: float | None, dtype: str) -> dict[str, float]:
        """Speed since the last reading; with `flops` per step also `flops_per_second` and its share of the peak."""
        now = time.perf_counter()
        reading: dict[str, float] = {}
        if self._started is not None and steps > self._steps:
            elapsed = max(now - self._started - self._paused, 1e-9)
            seconds = elapsed / (steps - self._steps)
            reading = {
                "images_per_second": self._batch_size / seconds,
                "step_seconds": seconds,
                "data_wait_share": min((self._stream.wait_seconds - self._wait) / elapsed, 1.0),
            }
            if flops:
                reading["flops_per_second"] = flops / seconds
                reading["peak_share"] = flops / seconds / peak_flops(dtype)
        self._steps, self._wait, self._paused = steps, self._stream.wait_seconds, 0.0
        self._started = time.perf_counter()
        return reading


class Profiler:
    """Traces the steps from `first` up to, not including, `last`, given as "first:last", into `directory`.

    With several processes each writes into a folder of its own, since those of one host would overwrite one another.
    """

    def __init__(self, steps: str | None, directory: pathlib.Path):
        self._range = None if steps is None else _read_range(steps)
        self._directory = directory if jax.process_count() == 1 else directory / f"process{jax.process_index()}"
        self._running = False

    def at(self, step: int, state: Any) -> None:
        """Starts or stops the trace before `step` runs; what computes `state` is still part of it."""
        if self._range is None:
            return
        if step == self._range[0]:
            jax.block_until_ready(state)  # steps still in flight belong before the trace
            options = jax.profiler.ProfileOptions()
            # With Python's own calls a checkpoint is a million events, at which the file for Perfetto is cut off.
            options.python_tracer_level = 0
            jax.profiler.start_trace(str(self._directory), profiler_options=options)
            self._running = True
        elif step == self._range[1]:
            jax.block_until_ready(state)
            self.stop()

    def stop(self) -> None:
        """Stops a running trace."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


def _read_range(steps: str) -> tuple[int, int]:
    try:
        first, last = (int(part) for part in steps.split(":"))
    except ValueError:
        first, last = 0, 0
    if not 0 <= first < last:
        raise ConfigError(f"profile.steps is {steps!r}; write 'first:last', such as '10:15' for steps 10 to 14.")
    return first, last
