"""Frozen teachers in a run: where their weights come from, and the one place where they are kept."""

from __future__ import annotations

import logging
import pathlib
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from mim_jax.contract import FrozenTeacher, Objective, Variables
from mim_jax.errors import CheckpointError, ConfigError, WeightsError
from mim_jax.normalization import normalization
from mim_jax.training.integrity import tree_checksums
from mim_jax.training.paths import leaf_names
from mim_jax.training.sharding import host_array

logger = logging.getLogger(__name__)

RANDOM = "random"
_MEANING = ("position", "activation", "norm_epsilon")  # of `model`: what the shapes of the weights do not tell


def split_teachers(variables: Variables, names: Collection[str]) -> tuple[Variables, dict[str, Any]]:
    """`variables` without the teachers of these names, and these."""
    if not names:
        return variables, {}
    teachers = dict(variables["teacher"])
    frozen = {name: teachers.pop(name) for name in names}
    rest = {key: value for key, value in variables.items() if key != "teacher"}
    return {**rest, "teacher": teachers} if teachers else rest, frozen


def join_teachers(variables: Variables, frozen: Mapping[str, Any]) -> Variables:
    """The inverse of `split_teachers`."""
    return {**variables, "teacher": {**variables.get("teacher", {}), **frozen}} if frozen else variables


class TeacherStore:
    """The frozen teachers of one run, under `<workdir>/teachers`: written once, verified whenever they are read."""

    def __init__(self, workdir: pathlib.Path, names: Collection[str]):
        self.directory, self.names = workdir / "teachers", tuple(names)
        self._checksums: dict[str, int] | None = None

    def save(self, teachers: Mapping[str, Any]) -> dict[str, int]:
        """Writes them if this has not been done, and gives their checksums for the metadata of a checkpoint."""
        if self._checksums is None:
            checksums = tree_checksums(dict(teachers))
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(self.directory, dict(teachers), force=True)
            self._checksums = checksums
        return self._checksums

    def restore(self, template: Mapping[str, Any], checksums: Mapping[str, int]) -> dict[str, Any]:
        """The teachers on the template's shardings.

        Raises:
          CheckpointError: they are missing, damaged, or not those the checkpoint was made with.
        """
        remedy = "put the folder back from a copy of the run, or start anew in another workdir"
        if not self.directory.is_dir():
            raise CheckpointError(f"{self.directory}, which holds the run's frozen teachers, is missing; {remedy}.")
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                # As stored: a run may go on, or be evaluated, where matrices are computed with in another dtype.
                stored = checkpointer.metadata(self.directory).item_metadata
                target = jax.tree.map(
                    lambda leaf, saved: jax.ShapeDtypeStruct(leaf.shape, saved.dtype, sharding=leaf.sharding),
                    dict(template),
                    dict(stored),
                )
                teachers = checkpointer.restore(self.directory, target)
        except Exception as error:  # Orbax raises bare Exceptions for unreadable arrays
            reason = str(error).partition("\n")[0][:300]
            raise CheckpointError(
                f"The frozen teachers under {self.directory} cannot be read ({reason}); {remedy}."
            ) from error
        actual = tree_checksums(teachers)
        if actual != dict(checksums):
            wrong = [name for name, value in actual.items() if checksums.get(name) != value]
            raise CheckpointError(
                f"The frozen teachers under {self.directory} are not those of the checkpoint ({len(wrong)} of "
                f"{len(actual)} arrays differ, the first is {wrong[0] if wrong else 'missing'}); {remedy}."
            )
        self._checksums = actual
        return jax.tree.map(lambda teacher, leaf: teacher.astype(leaf.dtype), teachers, dict(template))


def check_teachers(objective: Objective) -> None:
    """Raises ConfigError for a teacher that has no weights, before anything is compiled."""
    config = objective.config
    # A weights file may hold them too, which is not known before it is read.
    given = config.init_from is not None and (config.init_parts == () or config.init_layout is not None)
    for name, teacher in objective.teachers.items():
        if not teacher.section.weights and not given:
            raise ConfigError(_no_weights(config, name, teacher))


def _no_weights(config: ConfigDict, name: str, teacher: FrozenTeacher) -> str:
    key = section_name(config, teacher.section)
    return (
        f"The teacher {name!r} has no weights; set {key}.weights to a run's directory or a weights file, to "
        f"'{RANDOM}' to try things out, or set init_from, and init_parts=() so that only the teacher takes from it."
    )


def load_teachers(
    objective: Objective,
    variables: Variables,
    *,
    import_weights: Callable[..., Any] | None = None,
    loaded: Collection[str] = (),
) -> Variables:
    """`variables` with the weights its frozen teachers' config sections name, as arrays of this host.

    A section without weights stands for `init_from` where nothing else takes from it, `init_parts=()`. Parts in
    `loaded`, like "teacher/clip", were in the weights file that `init_from` named.

    Raises:
      ConfigError: a teacher has no weights, or a run does not fit it.
      WeightsError: a weights file does not.
    """
    check_teachers(objective)
    teachers = {}
    for name, teacher in objective.teachers.items():
        config = objective.config
        weights = teacher.section.weights or (config.init_from if config.init_parts == () else None)
        if weights == RANDOM:
            logger.warning("The teacher %r is random: that serves to try things out, and teaches nothing.", name)
        elif weights is None and f"teacher/{name}" not in loaded:
            raise ConfigError(_no_weights(config, name, teacher))
        elif weights is not None:
            teachers[name] = teacher.take(_read(objective.config, name, teacher, weights, import_weights))
            logger.info("The teacher %r has the weights of %s.", name, weights)
    return {**variables, "teacher": {**variables["teacher"], **teachers}} if teachers else variables


def section_name(config: ConfigDict, section: ConfigDict) -> str:
    """The dotted name of a section within `config`."""
    for key, value in config.items():
        if value is section:
            return key
        if isinstance(value, type(config)) and (inner := section_name(value, section)):
            return f"{key}.{inner}"
    return ""


def _read(
    config: ConfigDict, name: str, teacher: FrozenTeacher, weights: str, import_weights: Callable[..., Any] | None
) -> Variables:
    if (pathlib.Path(weights).expanduser() / "config.json").is_file() and _is_run(weights):
        return _read_run(config, name, teacher, weights)
    key = section_name(config, teacher.section)
    layout = teacher.section.layout or teacher.layout
    if layout is None:
        raise ConfigError(f"{key}.weights is {weights!r}, which is no run; for a weights file, set {key}.layout too.")
    if import_weights is None:
        raise ConfigError(f"{key}.weights is a file, which this Trainer cannot read; use mim_jax.train.train.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it holds more than a teacher needs; the report says what
            variables, report = import_weights(teacher.objective, weights, layout, resize_positions=True)
    except WeightsError as error:
        raise WeightsError(f"The teacher {name!r}: {error}") from error
    if report.random:  # a teacher that is partly random would teach noise without anyone noticing
        raise WeightsError(f"The teacher {name!r} needs more than {weights} holds: {', '.join(report.random)}.")
    logger.info("%s", report)
    return variables


def _is_run(weights: str) -> bool:
    """Whether a directory with a config.json is a run, and not weights as transformers writes them."""
    return (pathlib.Path(weights).expanduser() / "checkpoints").is_dir()


def _read_run(config: ConfigDict, name: str, teacher: FrozenTeacher, weights: str) -> Variables:
    from mim_jax.training.checkpoint import load_source

    run, key = load_source(weights, config.mesh), section_name(config, teacher.section)
    _check_run(config, key, teacher, run.config, weights)
    source = run.objective.evaluated(run.variables)
    available = dict(zip(leaf_names(source), jax.tree.leaves(source), strict=True))
    wanted = jax.eval_shape(teacher.objective.init, jax.random.key(0), teacher.objective.batch_spec())
    if lost := _without_a_place(available, leaf_names(wanted)):
        raise ConfigError(
            f"The run {weights} has {lost[0]}, for which the teacher {name!r} has no place, so that it would be "
            f"another network; set {key}.name and the sizes under {key} to the run's."
        )

    def pick(path: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        found = available.get(path)
        if found is None:
            raise ConfigError(
                f"The teacher {name!r} has {path}, which the run {weights} has not; choose another {key}.name, or "
                "another run."
            )
        if found.shape != leaf.shape:
            raise ConfigError(
                f"The teacher {name!r} has {path} of shape {leaf.shape} where the run {weights} has {found.shape}; set "
                f"the sizes under {key} to the run's."
            )
        return host_array(found)

    leaves = [
        pick(path.removeprefix("params/"), leaf)
        for path, leaf in zip(leaf_names(wanted), jax.tree.leaves(wanted), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(wanted), leaves)


def _without_a_place(available: Collection[str], wanted: Collection[str]) -> list[str]:
    """Names of a run's weights, in parts that a teacher has, that the teacher has not."""
    wanted = {path.removeprefix("params/") for path in wanted}
    parts = {name.split("/")[0] for name in wanted}
    inside = [name for name in available if name.split("/")[0] in parts]
    return [name for name in inside if name not in wanted and not name.endswith("encoder/mask_token")]


def _check_run(config: ConfigDict, key: str, teacher: FrozenTeacher, run: ConfigDict, weights: str) -> None:
    ours, theirs = teacher.objective.config.get("model"), run.get("model")
    for field in _MEANING if ours and theirs else ():
        if ours.get(field) != theirs.get(field):
            raise ConfigError(
                f"The run {weights} was trained with model.{field}={theirs.get(field)!r}, the teacher of {key} has "
                f"{ours.get(field)!r}; choose another {key}.name or another run."
            )
    for mine, its in zip(teacher.constants or normalization(config), normalization(run), strict=True):
        if np.shape(mine) != its.shape or not np.allclose(mine, its):
            remedy = "set data.mean and data.std to its" if teacher.constants is None else f"choose {key}.name='vit'"
            raise ConfigError(f"The run {weights} saw images normalised otherwise than {key} is to; {remedy}.")
