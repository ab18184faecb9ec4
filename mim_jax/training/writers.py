"""Where metrics go: a JSON-lines file, TensorBoard, and the console."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

import tqdm

from mim_jax.files import replace_text

logger = logging.getLogger(__name__)


class Writer(Protocol):
    """Something that takes scalars by name at a step."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records the scalars."""

    def close(self) -> None:
        """Flushes and releases what is held."""


class JsonLinesWriter:
    """One JSON object a line, `{"step": ..., name: value, ...}`, flushed at once: the primary log."""

    def __init__(self, path: pathlib.Path, *, first_step: int):
        """Opens `path` for appending and drops rows past `first_step`, which a resumed run writes again."""
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= first_step]
            replace_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends a row; non-finite values are written as the strings JSON has no numbers for."""
        row = {"step": step, **{k: v if abs(v) < float("inf") else str(v) for k, v in scalars.items()}}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # rows outlive a power cut as checkpoints do

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # the torn last line of a killed run


class TensorBoardWriter:
    """TensorBoard event files, from TensorBoard's own record format and messages.

    Its EventFileWriter would import TensorFlow wherever that is installed, which takes seconds and memory.
    """

    def __init__(self, directory: pathlib.Path):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        directory.mkdir(parents=True, exist_ok=True)
        self._event, self._summary = Event, Summary
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((directory / name).open("wb"))
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one event with all scalars."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._add(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def close(self) -> None:
        """Closes the event file."""
        self._records.close()

    def _add(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()


class ConsoleWriter:
    """A progress bar on a terminal; elsewhere (pods, log files) one plain line each time."""

    def __init__(self, total_steps: int, *, first_step: int, bar: bool | None = None, unit: str = "step"):
        bar = sys.stderr.isatty() if bar is None else bar
        self._total = total_steps
        self._bar = None
        if bar:
            self._bar = tqdm.tqdm(
                total=total_steps, initial=first_step, unit=unit, dynamic_ncols=True, desc="train", smoothing=0.1
            )

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows the loss, the rate and the learning rate; evaluations in full."""
        shown = {k: scalars[k] for k in ("loss", "lr", "images_per_second") if k in scalars}
        shown = shown or dict(scalars)
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if self._bar is None:
            logger.info("step %d/%d  %s", step, self._total, text)
        elif "loss" in shown:
            self._bar.set_postfix_str(f"loss {shown['loss']:.4f}, {shown.get('images_per_second', 0):.0f} img/s")
        else:
            self._bar.write(f"step {step}: {text}", file=sys.stderr)

    def close(self) -> None:
        """Ends the bar's line."""
        if self._bar is not None:
            self._bar.close()


class Writers:
    """Several writers as one."""

    def __init__(self, writers: list[Writer]):
        self._writers = writers

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Passes the scalars to each."""
        for writer in self._writers:
            writer.write(step, scalars)

    def advance(self, step: int) -> None:
        """Tells the writers that show progress."""
        for writer in self._writers:
            if isinstance(writer, ConsoleWriter):
                writer.advance(step)

    def close(self) -> None:
        """Closes each."""
        for writer in self._writers:
            writer.close()


def make_writers(
    workdir: pathlib.Path, total_steps: int, *, first_step: int, tensorboard: bool, progress: bool | None, main: bool
) -> Writers:
    """The writers of a run; a process that is not the main one writes nothing."""
    if not main:
        return Writers([])
    writers: list[Writer] = [JsonLinesWriter(workdir / "metrics.jsonl", first_step=first_step)]
    if tensorboard:
        writers.append(TensorBoardWriter(workdir / "tensorboard"))
    writers.append(ConsoleWriter(total_steps, first_step=first_step, bar=progress))
    return Writers(writers)
