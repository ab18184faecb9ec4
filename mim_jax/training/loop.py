"""The training loop: reads batches, steps, logs, evaluates, saves."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import flax
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from mim_jax import data
from mim_jax.contract import STORED, Objective
from mim_jax.errors import ConfigError, DataError, TrainingError
from mim_jax.files import replace_text
from mim_jax.layers.compute import compute_dtype
from mim_jax.training.checkpoint import Checkpointer
from mim_jax.training.duration import RunLength
from mim_jax.training.flops import jaxpr_flops
from mim_jax.training.guard import Guard
from mim_jax.training.initialize import ImportWeights, initialize
from mim_jax.training.lock import workdir_lock
from mim_jax.training.metering import Meter, Profiler
from mim_jax.training.preemption import EXIT_PREEMPTED, PreemptionNotice
from mim_jax.training.program import Program
from mim_jax.training.sharding import make_mesh, put_batch
from mim_jax.training.state import TrainState
from mim_jax.training.teacher_cache import check_cache, open_cache
from mim_jax.training.teachers import check_teachers
from mim_jax.training.watchdog import Watchdog, in_notebook
from mim_jax.training.writers import Writers, make_writers

logger = logging.getLogger(__name__)

MakeEvaluator = Callable[[Objective, ConfigDict, jax.sharding.Mesh], Any]
BatchSource = Callable[[int], Iterator[dict[str, np.ndarray]]]

_FOR_THE_GUARD = ("finite", "spike", "typical_grad_norm", "consecutive_skipped")  # and not for the log
_IN_FLIGHT = 2  # steps the host may run ahead of the devices


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config's durations in steps."""

    total_steps: int
    log_every: int
    checkpoint_every: int
    keep_every: int | None
    evaluate_every: int | None

    @classmethod
    def from_config(cls, config: ConfigDict, length: RunLength) -> Plan:
        """Raises ConfigError naming the key of a duration that cannot be read."""
        return cls(
            total_steps=length.steps(config.duration, "duration"),
            log_every=length.steps(config.log.every, "log.every"),
            checkpoint_every=length.steps(config.checkpoint.every, "checkpoint.every"),
            keep_every=length.optional_steps(config.checkpoint.keep_every, "checkpoint.keep_every"),
            evaluate_every=length.optional_steps(config.evaluation.every, "evaluation.every"),
        )


class Trainer:
    """A run, set up and checked before anything is compiled; `run` carries it out."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: str | pathlib.Path,
        *,
        allow_config_change: bool = False,
        batches: BatchSource | None = None,
        make_evaluator: MakeEvaluator | None = None,
        import_weights: ImportWeights | None = None,
    ):
        """Sets up a run.

        Args:
          config: the complete config.
          workdir: the run's directory, created by `run` if missing.
          allow_config_change: resume although lr, schedule, duration or data differ from the checkpoint's.
          batches: called with the first step, gives this process's slices of the batches from there on as dicts of
            arrays: your own `tf.data.Dataset.as_numpy_iterator()`, say. Resuming is exact if it is a function of the
            step. None: what `config.data` describes.
          make_evaluator: `mim_jax.evaluation.Evaluator` or one of its kind; needed where `evaluation.every` is set.
          import_weights: `mim_jax.interop.import_with_report`; needed where `init_layout` is set.

        Raises:
          ConfigError: the config cannot be run as it is.
          DataError: the data cannot.
        """
        self.config = config
        self.workdir = pathlib.Path(workdir).expanduser().absolute()
        check_workdir(self.workdir)
        self.mesh = make_mesh(config.mesh)
        self.info = data.data_info(config)
        if batches is None and self.info.num_train_examples < config.batch_size:
            raise DataError(
                f"{config.data.source} has {self.info.num_train_examples} images, fewer than batch_size "
                f"{config.batch_size}; lower batch_size."
            )
        if config.get("num_classes") not in (None, self.info.num_classes) and self.info.num_classes is not None:
            raise ConfigError(
                f"num_classes is {config.num_classes}, but {config.data.source} has {self.info.num_classes} classes."
            )
        self.program = Program(config, self.mesh, self.info.num_train_examples)
        self.objective = self.program.objective
        check_teachers(self.objective)
        self._cache = None
        if batches is None:
            data.check_views(config, self.objective.batch_spec())
            self._cache = open_cache(config, self.objective, self.info)
        elif config.data.teacher_cache is not None:
            raise ConfigError("data.teacher_cache is about the images of data.source; set it to None for others.")
        self.plan = Plan.from_config(config, self.program.length)
        self.guard = Guard(config, self.workdir, self.info.num_train_examples)
        minutes = None if in_notebook() else config.watchdog_minutes
        stacks = self.workdir / "diagnostics" / f"stacks_process{jax.process_index()}.txt"
        self.watchdog = Watchdog(None if minutes is None else 60 * minutes, stacks)
        self.evaluator = None
        if self.plan.evaluate_every:
            if make_evaluator is None:
                raise ConfigError(
                    "evaluation.every is set, but this Trainer has no evaluator; use mim_jax.train.train."
                )
            self.evaluator = make_evaluator(self.objective, config, self.mesh)
        self._import_weights = import_weights
        self._allow_config_change = allow_config_change
        self._batches = self._configured_batches if batches is None else batches
        self._is_main = jax.process_index() == 0

    def run(self) -> TrainState:
        """Trains to the end and returns the final state.

        Raises:
          TrainingError: the loss stopped being finite, or the work directory can no longer be written.
          CheckpointError: a checkpoint cannot be written, or none of those there are is sound.
          DataError: the data cannot be read any more; the state reached is saved first.
          SystemExit: with EXIT_PREEMPTED after a SIGTERM, once the state is saved.
        """
        try:
            with contextlib.ExitStack() as stack:
                return self._run(stack)
        except OSError as error:
            raise TrainingError(
                f"The run cannot go on: {error}; free space under {self.workdir} or make it writable, and start the "
                "same command again."
            ) from error

    def _run(self, stack: contextlib.ExitStack) -> TrainState:
        if self._is_main:
            stack.enter_context(workdir_lock(self.workdir))
        checkpointer = Checkpointer(
            self.workdir,
            keep=self.config.checkpoint.keep,
            keep_every=self.plan.keep_every,
            asynchronous=self.config.checkpoint.asynchronous,
            teachers=self.objective.teachers,
        )
        stack.callback(checkpointer.close)
        state = initialize(
            self.program,
            checkpointer,
            import_weights=self._import_weights,
            allow_config_change=self._allow_config_change,
        )
        if self._cache is not None:
            check_cache(self._cache, self.program, self.info, state.variables)
        self._write_config()  # only now: a refused resume leaves the run's own config as it is
        start = int(state.step)
        writers = make_writers(
            self.workdir,
            self.plan.total_steps,
            first_step=start,
            tensorboard=self.config.log.tensorboard,
            progress=self.config.log.progress,
            main=self._is_main,
        )
        stack.callback(writers.close)
        if start >= self.plan.total_steps:
            logger.info("The run is already complete at step %d.", start)
            return state
        preemption = stack.enter_context(PreemptionNotice())
        stack.enter_context(self.watchdog)
        stream = stack.enter_context(data.prefetch(self._batches(start), self._put))
        return self._train(state, stream, checkpointer, writers, preemption)

    def _configured_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        processes = dict(process_index=jax.process_index(), process_count=jax.process_count())
        return data.train_batches(self.config, start_step=start_step, **processes)

    def _train(
        self,
        state: TrainState,
        stream: Iterator[dict[str, jax.Array]],
        checkpointer: Checkpointer,
        writers: Writers,
        preemption: PreemptionNotice,
    ) -> TrainState:
        plan, start = self.plan, int(state.step)
        steps = StepCompiler(self.program)
        meter = Meter(self.config.batch_size, stream)
        pending: collections.deque = collections.deque()
        profiler = Profiler(self.config.profile.steps, self.workdir / "profile")
        if start == 0:
            self._evaluate(state, 0, writers)
        for step in range(start, plan.total_steps):
            profiler.at(step, state)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                batch = self._next_batch(stream, state, checkpointer)
                train_step = steps.at(step, state, batch)
                state, metrics = train_step(state, batch)
            done = step + 1
            pending.append((done, metrics))
            # Looking at a step that has surely ended keeps the devices busy and notices trouble soon.
            if len(pending) > _IN_FLIGHT:
                self.guard.check(*pending.popleft(), state, self._meta)
            self.watchdog.beat()
            writers.advance(done)
            if done % plan.log_every == 0 or done == plan.total_steps:
                speed = meter.read(done - start, steps.flops, compute_dtype(self.config.compute.dtype))
                writers.write(done, {**_logged(metrics), "epoch": done / self.program.length.steps_per_epoch, **speed})
                checkpointer.check()
            if plan.evaluate_every and (done % plan.evaluate_every == 0 or done == plan.total_steps):
                with meter.paused():
                    self._evaluate(state, done, writers)
            stopping = preemption.received(done)
            if done % plan.checkpoint_every == 0 or done == plan.total_steps or stopping:
                for item in pending:
                    self.guard.check(*item, state, self._meta)
                pending.clear()
                with meter.paused():
                    checkpointer.save(state, self._meta())
            if stopping and done < plan.total_steps:
                checkpointer.close()
                logger.warning("Received %s: saved step %d; start the same command again to go on.", stopping, done)
                sys.exit(EXIT_PREEMPTED)
        profiler.stop()
        return state

    def _next_batch(
        self, stream: Iterator[dict[str, jax.Array]], state: TrainState, checkpointer: Checkpointer
    ) -> dict[str, jax.Array]:
        try:
            with jax.profiler.TraceAnnotation("wait for data"):
                return next(stream)
        except Exception:
            # What has been learnt is sound and not lost with the data. With several processes the others know nothing
            # of this one's trouble, and a save that not all take part in would never end.
            if jax.process_count() == 1 and int(state.step) > 0:
                checkpointer.save(state, self._meta())
                checkpointer.close()
                logger.warning("The data failed: saved step %d.", int(state.step))
            raise

    def _put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        names = self.objective.batch_spec()
        missing = [name for name in names if name not in batch]
        if missing:
            raise ConfigError(f"data.source {self.config.data.source!r} has no {missing[0]!r}, which this run needs.")
        stored = [name for name in batch if name.startswith(STORED)]
        return put_batch({name: batch[name] for name in (*names, *stored)}, self.mesh)

    def _evaluate(self, state: TrainState, step: int, writers: Writers) -> None:
        if self.evaluator is None or (step == 0 and not self.config.evaluation.at_start):
            return
        with self.watchdog.paused():
            results = self.evaluator.run(
                state.variables, self.config.evaluation.tasks, step=step, out_dir=self.workdir / "evaluation"
            )
        if results:
            writers.write(step, results)

    def _write_config(self) -> None:
        if not self._is_main:
            return
        replace_text(self.workdir / "config.json", json.dumps(self.config.to_dict(), indent=1) + "\n")

    def _meta(self) -> dict[str, Any]:
        versions = {m.__name__: m.__version__ for m in (jax, flax, optax, np)}
        return {
            "config": json.loads(json.dumps(self.config.to_dict())),
            "versions": versions,
            "devices": jax.device_count(),
            "data_fingerprint": self.info.fingerprint,
        }


class StepCompiler:
    """The compiled training step of the current stage; compiled anew where the objective's static sizes change."""

    def __init__(self, program: Program):
        self._program = program
        self._stage: Objective | None = None
        self._compiled: Any = None
        self.flops: float | None = None  # of one step over all devices, see `jaxpr_flops`

    def at(self, step: int, state: TrainState, batch: dict[str, jax.Array]) -> Any:
        """The step function for update number `step` (from 0)."""
        stage = self._program.objective.stage(step / self._program.total_steps)
        if stage is not self._stage:
            traced = self._program.jitted_step(stage).trace(state, batch)
            self._compiled = traced.lower().compile()
            self._stage = stage
            self.flops = jaxpr_flops(traced.jaxpr)
        return self._compiled


def _logged(metrics: dict[str, Any]) -> dict[str, float]:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    return {"loss": values.pop("loss"), **{k: v for k, v in values.items() if k not in _FOR_THE_GUARD}}


def check_workdir(workdir: pathlib.Path) -> None:
    """Raises ConfigError unless `workdir` is, or can become, a directory this process may write to."""
    existing = next(path for path in (workdir, *workdir.parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"workdir {workdir} cannot be a directory: {existing} is a file; give another one.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"workdir {workdir} cannot be written: {existing} is not writable; give another one.")
