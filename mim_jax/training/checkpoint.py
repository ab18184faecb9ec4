"""Checkpoints through Orbax: saved asynchronously, verified on restore, damaged ones set aside."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from mim_jax.contract import Objective, Variables
from mim_jax.errors import CheckpointError, ConfigError
from mim_jax.training.integrity import nonfinite_leaves, tree_checksums
from mim_jax.training.paths import leaf_names
from mim_jax.training.sharding import make_mesh, tree_shardings
from mim_jax.training.state import TrainState
from mim_jax.training.teachers import TeacherStore, join_teachers, split_teachers

logger = logging.getLogger(__name__)
FORMAT = 1  # of the metadata written beside the arrays
ARRAYS = ("variables", "optimizer")  # the items that hold arrays


class Checkpointer:
    """The checkpoints of one run, under `<workdir>/checkpoints/<step>/{variables,optimizer,meta}`."""

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        keep: int = 2,
        keep_every: int | None = None,
        asynchronous: bool = True,
        read_only: bool = False,
        teachers: Collection[str] = (),
    ):
        """`teachers` are the names of frozen ones, which are kept once, beside the checkpoints."""
        self.directory = pathlib.Path(workdir).expanduser().absolute() / "checkpoints"
        if read_only and not self.directory.is_dir():
            raise CheckpointError(f"There are no checkpoints under {self.directory.parent}; give a run's workdir.")
        self._damaged = self.directory.parent / "damaged"
        self._teachers = TeacherStore(self.directory.parent, teachers)
        if not read_only:
            self._refuse_links()
            self._discard_empty_steps()
        self._had_any = bool(self._step_directories()) or self._damaged.exists()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else keep,
                keep_period=keep_every,
                create=not read_only,
                enable_async_checkpointing=asynchronous and not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
            item_handlers={
                **{name: ocp.StandardCheckpointHandler() for name in ARRAYS},
                "meta": ocp.JsonCheckpointHandler(),
            },
        )
        self._read_only = read_only
        self._last_saved: int | None = None

    def steps(self) -> list[int]:
        """Steps of the checkpoints that look complete, ascending."""
        folders = {step: self.directory / str(step) for step in self._manager.all_steps()}
        # A step whose background save has not ended is known to the manager, but not there yet.
        return sorted(step for step, folder in folders.items() if folder.is_dir() and any(folder.iterdir()))

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts saving `state` under its step; the arrays are copied before this returns.

        Raises:
          CheckpointError: a checkpoint of a later step exists, or an earlier background save failed.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            if step != self._last_saved:
                logger.warning("Checkpoint %d exists under %s and is not written again.", step, self.directory)
            return
        state, teachers = self._split(state)
        variables, optimizer = _items(state)
        checksums = tree_checksums({"variables": variables, "optimizer": optimizer})
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        meta = {**meta, "format": FORMAT, "step": step, "time": time, "checksums": checksums}
        with self._saving():
            if teachers:
                meta["teachers"] = self._teachers.save(teachers)
            self._manager.check_for_errors()
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(variables),
                    optimizer=ocp.args.StandardSave(optimizer),
                    meta=ocp.args.JsonSave(meta),
                ),
            )
        if not saved:
            raise CheckpointError(f"Checkpoint {step} was not saved under {self.directory}: newer steps exist there.")
        self._last_saved = step

    def check(self) -> None:
        """Raises CheckpointError if a background save failed."""
        with self._saving():
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits for background saves; raises CheckpointError if one failed."""
        with self._saving():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the background thread's, of any kind, which Orbax raises at its next call
            raise CheckpointError(
                f"Saving a checkpoint under {self.directory} failed: {_gist(error)}; earlier ones are intact, so free "
                "space or mend the storage and start the same command again."
            ) from error

    def meta(self, step: int) -> dict[str, Any]:
        """The metadata saved with a step: config, versions, checksums."""
        return self._read(step, meta=ocp.args.JsonRestore()).meta

    def restore_latest(self, template: TrainState, check_meta: Callable[[dict], None]) -> TrainState | None:
        """The newest sound checkpoint on the template's shardings, or None where the run has never had one.

        Damaged ones are moved to `<workdir>/damaged/<step>` and reported. `check_meta` sees the metadata first and may
        refuse.

        Raises:
          CheckpointError: the run had checkpoints, but none of them is sound.
        """
        template, teachers = self._split(template)
        for step in reversed(self.steps()):
            try:
                meta = self.meta(step)
                check_meta(meta)
                _check_names(template, meta, step)
                _check_dtypes(template, self._saved(step), step)
                state = self._restore(step, template, meta)
            except CheckpointError as error:
                logger.warning("Checkpoint %d is damaged and set aside: %s", step, error)
                self._set_aside(step)
            else:
                return dataclasses.replace(state, variables=self._join(state.variables, teachers, meta))
        if self._had_any:
            raise CheckpointError(
                f"No sound checkpoint is left under {self.directory}; "
                "to start afresh, give another workdir or delete this one."
            )
        return None

    def restore_variables(self, step: int, template: Variables) -> Variables:
        """The variables of one step, verified; raises CheckpointError if they are damaged."""
        meta = self.meta(step)
        template, teachers = split_teachers(template, self._teachers.names)
        variables = self._read(step, variables=ocp.args.StandardRestore(template)).variables
        _verify({"variables": variables}, meta, step)
        return self._join(variables, teachers, meta)

    def arrays(self, step: int) -> Any:
        """Every array of a checkpoint as it was saved, on the first device, verified; needs no config.

        Raises:
          CheckpointError: it is damaged.
        """
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), self._saved(step)
        )
        items = self._read(step, **{name: ocp.args.StandardRestore(target[name]) for name in ARRAYS})
        arrays = {name: items[name] for name in ARRAYS}
        _verify(arrays, self.meta(step), step)
        return arrays

    def _split(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        variables, teachers = split_teachers(state.variables, self._teachers.names)
        return dataclasses.replace(state, variables=variables), teachers

    def _join(self, variables: Variables, template: dict[str, Any], meta: dict[str, Any]) -> Variables:
        teachers = self._teachers.restore(template, meta.get("teachers", {})) if template else {}
        return join_teachers(variables, teachers)

    def _saved(self, step: int) -> dict[str, Any]:
        """Shapes and dtypes of a checkpoint's arrays."""
        try:
            return {name: self._manager.item_metadata(step)[name].tree for name in ARRAYS}
        except Exception as error:  # whatever Orbax's parsers raise on damaged metadata
            raise CheckpointError(f"Checkpoint {step} has no readable metadata: {_gist(error)}") from error

    def _restore(self, step: int, template: TrainState, meta: dict[str, Any]) -> TrainState:
        variables, optimizer = _items(template)
        restored = self._read(
            step, variables=ocp.args.StandardRestore(variables), optimizer=ocp.args.StandardRestore(optimizer)
        )
        _verify({"variables": restored.variables, "optimizer": restored.optimizer}, meta, step)
        return TrainState(variables=restored.variables, **restored.optimizer)

    def _read(self, step: int, **items: ocp.args.CheckpointArgs) -> ocp.args.Composite:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax raises bare Exceptions for unreadable arrays
            raise CheckpointError(f"Checkpoint {step} under {self.directory} cannot be read: {_gist(error)}") from error

    def _step_directories(self) -> list[pathlib.Path]:
        if not self.directory.is_dir():
            return []
        return [path for path in self.directory.iterdir() if path.is_dir() and path.name.isdigit()]

    def _refuse_links(self) -> None:
        links = [path for path in self._step_directories() if path.is_symlink()]
        if links:
            raise CheckpointError(
                f"{links[0]} is a link, and a run deletes its old checkpoints; put the checkpoint itself there, or use "
                "another workdir with init_from."
            )

    def _discard_empty_steps(self) -> None:
        # Orbax takes any directory named like a number for a checkpoint, even an empty one.
        for path in self._step_directories():
            if not any(path.iterdir()) and jax.process_index() == 0:
                logger.warning("Ignoring %s: an empty directory is no checkpoint.", path)
                path.rmdir()

    def _set_aside(self, step: int) -> None:
        if self._read_only:
            return
        if jax.process_index() == 0:
            target = self._damaged / f"{step}"
            self._damaged.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            shutil.move(self.directory / str(step), target)
        self._manager.reload()


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, restored for use."""

    config: ConfigDict
    objective: Objective
    variables: Variables
    step: int


def load_run(workdir: str | pathlib.Path, step: int | None = None, config: ConfigDict | None = None) -> Run:
    """Restores a run's variables on the current devices.

    Args:
      workdir: the run's directory.
      step: which checkpoint; None: the newest.
      config: the run's config with changes that keep the parameter tree (mesh, data, evaluation); None: as it was run.

    Raises:
      CheckpointError: there is no such run or step, or it is damaged.
    """
    from mim_jax.config import create

    config = load_run_config(workdir) if config is None else config
    objective = create(config)
    checkpointer = Checkpointer(workdir, read_only=True, teachers=objective.teachers)
    steps = checkpointer.steps()
    if not steps or (step is not None and step not in steps):
        raise CheckpointError(f"{workdir} has no checkpoint {'' if step is None else step}; it has {steps or 'none'}.")
    step = steps[-1] if step is None else step
    shapes = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())
    variables = checkpointer.restore_variables(step, abstract_on(shapes, make_mesh(config.mesh)))
    checkpointer.close()
    return Run(config, objective, variables, step)


def load_source(workdir: str | pathlib.Path, mesh: ConfigDict) -> Run:
    """A run that another one takes weights from, on the devices of that one's `mesh` section; see `load_run`."""
    config = load_run_config(workdir)
    config.mesh = ConfigDict(mesh.to_dict())
    return load_run(workdir, config=config)


def load_run_config(workdir: str | pathlib.Path) -> ConfigDict:
    """The resolved config a run was started with; raises CheckpointError if the directory holds no run."""
    from mim_jax.config import resolve

    file = pathlib.Path(workdir).expanduser() / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{workdir} is no run: it has no config.json.")
    try:
        return resolve(json.loads(file.read_text()))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file} is damaged ({error}); restore it from the run's newest checkpoint.") from error


def abstract_on(shapes: Any, mesh: jax.sharding.Mesh) -> Any:
    """Shapes with the shardings they have on a mesh: the target of a restore."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh),
    )


def _gist(error: Exception) -> str:
    """The first line of a library's message, its middle left out where it is very long."""
    line = (str(error) or type(error).__name__).partition("\n")[0]
    return line if len(line) <= 300 else f"{line[:140]} ... {line[-140:]}"


def _items(state: TrainState) -> tuple[Variables, dict[str, Any]]:
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    return fields.pop("variables"), fields


def _check_names(template: TrainState, meta: dict[str, Any], step: int) -> None:
    variables, optimizer = _items(template)
    ours, saved = set(leaf_names({"variables": variables, "optimizer": optimizer})), set(meta["checksums"])
    if ours != saved:
        raise ConfigError(
            f"Checkpoint {step} holds other arrays than this config builds: "
            f"only in the checkpoint {sorted(saved - ours)[:3]}, only in the config {sorted(ours - saved)[:3]}; "
            "use the run's own config, or start a new workdir with init_from."
        )


def _check_dtypes(template: TrainState, saved: dict[str, Any], step: int) -> None:
    # Orbax would convert in silence, and the checksum of what it made would differ from what was saved.
    variables, optimizer = _items(template)
    ours, theirs = (
        dict(zip(leaf_names(tree), [leaf.dtype for leaf in jax.tree.leaves(tree)], strict=True))
        for tree in ({"variables": variables, "optimizer": optimizer}, saved)
    )
    for name, dtype in ours.items():
        if theirs.get(name, dtype) != dtype:
            raise ConfigError(
                f"Checkpoint {step} holds {name} as {theirs[name]}, but this config builds it as {dtype}; "
                "use the run's own dtypes (optimizer.moment_dtype), or start a new workdir with init_from."
            )


def _verify(items: dict[str, Any], meta: dict[str, Any], step: int) -> None:
    expected = meta["checksums"]
    actual = tree_checksums(items)
    wrong = [name for name, value in actual.items() if expected.get(name) != value]
    if wrong:
        raise CheckpointError(
            f"Checkpoint {step} is damaged: {len(wrong)} of {len(actual)} arrays differ from what was saved, "
            f"the first is {wrong[0]}."
        )
    wild = nonfinite_leaves({"params": items["variables"]["params"]})
    if wild:
        raise CheckpointError(f"Checkpoint {step} has {len(wild)} arrays that are not finite, the first is {wild[0]}.")
