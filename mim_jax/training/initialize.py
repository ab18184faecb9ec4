"""How a run is initialised. The one rule: its own newest checkpoint, else `init_from`, else from scratch."""

from __future__ import annotations

import logging
import math
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mim_jax.contract import Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.layers.position import resize_position_table
from mim_jax.layers.relative_resize import resize_relative_table
from mim_jax.training.checkpoint import Checkpointer, load_source
from mim_jax.training.paths import leaf_names, map_with_name
from mim_jax.training.program import Program
from mim_jax.training.sharding import host_array
from mim_jax.training.state import TrainState, state_from_variables
from mim_jax.training.teachers import join_teachers, load_teachers, section_name, split_teachers

logger = logging.getLogger(__name__)

ImportWeights = Callable[..., tuple[Variables, Any]]  # see mim_jax.interop.import_with_report

# Sections a run may be resumed with changed: they alter what is watched or where it runs, not what is computed.
_FREE_TO_CHANGE = ("log", "evaluation", "checkpoint", "profile", "mesh", "compute", "watchdog_minutes")
# Sections that alter the training from here on; resuming with them changed has to be asked for.
_CHANGE_WHEN_ASKED = (
    "duration",
    "schedule",
    "optimizer",
    "nonfinite",
    "max_skipped",
    "spike_factor",
    "data",
    "accumulation_steps",
)


def initialize(
    program: Program,
    checkpointer: Checkpointer,
    *,
    import_weights: ImportWeights | None = None,
    allow_config_change: bool = False,
) -> TrainState:
    """The state a run starts or goes on with, on the mesh's shardings.

    Raises:
      ConfigError: the checkpoint belongs to another config.
      CheckpointError: the run had checkpoints, and all are damaged.
    """
    config, objective = program.config, program.objective

    def check_meta(meta: dict[str, Any]) -> None:
        # The run has its teachers' weights, wherever they came from.
        sections = [section_name(objective.config, teacher.section) for teacher in objective.teachers.values()]
        free = [f"{name}.{key}".replace(".", "/") for name in sections for key in ("weights", "layout")]
        check_same_config(meta["config"], config, allow_config_change, free)

    state = checkpointer.restore_latest(program.abstract_state, check_meta)
    if state is not None:
        logger.info("Resuming at step %d from %s.", int(state.step), checkpointer.directory)
        return state
    if config.init_from is None and not objective.teachers:
        logger.info("Starting from scratch.")
        return program.fresh_state()
    variables = first_variables(program, import_weights)
    return jax.jit(lambda v: state_from_variables(v, program.optimizer), out_shardings=program.shardings)(variables)


def first_variables(program: Program, import_weights: ImportWeights | None = None) -> Variables:
    """The variables a run starts with, frozen teachers included, on the mesh's shardings; see `initial_variables`."""
    config, objective, shardings = program.config, program.objective, program.shardings
    rng, spec = jax.random.key(config.seed), objective.batch_spec()
    fresh = jax.jit(lambda: objective.init(rng, spec), out_shardings=shardings.variables)()
    variables, loaded = fresh, set()
    if config.init_from is None:
        logger.info("Starting from scratch.")
    else:
        variables, loaded = initial_variables(config, objective, fresh, import_weights)
    variables = load_teachers(objective, variables, import_weights=import_weights, loaded=loaded)
    return jax.device_put(variables, shardings.variables)


def initial_variables(
    config: ConfigDict, objective: Objective, fresh: Variables, import_weights: ImportWeights | None = None
) -> tuple[Variables, set[str]]:
    """`fresh` with what `init_from` holds put in its place; reports what was loaded, resized and left random.

    `init_from` is a run directory, or a weights file read through `init_layout`. `init_parts` limits it to some top-
    level parts of the parameters, such as ("encoder",); with none, (), only frozen teachers take something from it.

    Returns:
      The variables, and the frozen teachers that a weights file held, like "teacher/clip".

    Raises:
      ConfigError: nothing fits.
    """
    if config.init_layout is not None:
        if import_weights is None:
            raise ConfigError(
                "init_layout is set, but this Trainer cannot read weights files; use mim_jax.train.train."
            )
        variables, report = import_weights(
            objective,
            config.init_from,
            config.init_layout,
            rng=jax.random.key(config.seed),
            parts=config.init_parts,
            resize_positions=True,
        )
        logger.info("%s", report)
        return variables, set(report.loaded)
    if not (pathlib.Path(config.init_from).expanduser() / "config.json").is_file():
        raise ConfigError(
            f"init_from is {config.init_from!r}, which is no run directory; for a weights file, set init_layout too."
        )
    if config.init_parts == () and objective.teachers:
        return fresh, set()
    source = load_source(config.init_from, config.mesh)
    fresh, frozen = split_teachers(fresh, objective.teachers)
    variables, lines = graft(fresh, source.variables, config.init_parts, source.objective, objective)
    logger.info("Initialised from %s at step %d:\n%s", config.init_from, source.step, "\n".join(lines))
    return join_teachers(variables, frozen), set()


def graft(
    fresh: Variables,
    source: Variables,
    parts: tuple[str, ...] | None,
    source_objective: Objective | None = None,
    objective: Objective | None = None,
) -> tuple[Variables, list[str]]:
    """Copies every leaf of `source` that has a namesake of the same shape in `fresh`.

    Position tables of another grid, or of other windows, are resized. A task's encoder, trained or frozen, takes the
    one the source's `encode` uses, which may be an EMA teacher.

    Returns:
      The new variables, and a line each on what was loaded, what was resized and what was left as initialised.
    """
    available = _flat(source)
    is_task = objective is not None and bool(objective.config.task)
    origin = "params" if source_objective is None else source_objective.encoder_collection
    loaded, resized, left = [], [], []

    def pick(name: str, leaf: jax.Array) -> Any:
        collection, _, rest = name.partition("/")
        wanted = name
        if is_task and collection == "state":  # an average starts as what it is an average of
            rest = rest.removeprefix("averaged/")
            wanted = f"state/{rest}"
        elif is_task and rest.startswith("encoder/"):
            wanted = f"{origin}/{rest}"
        if parts is not None and rest.split("/")[0] not in parts:
            left.append(name)
            return leaf
        found = available.get(wanted)
        if found is not None and found.shape == leaf.shape:
            loaded.append(name)
            return host_array(found)
        if found is not None and name.endswith("position/table"):
            resized.append(name)
            return _resize_table(host_array(found), leaf.shape, source_objective, objective)
        if found is not None and name.endswith("relative_bias/table") and found.ndim == 3:  # of blocks with windows
            resized.append(name)
            return _resize_window_tables(host_array(found), leaf.shape)
        left.append(name)
        return leaf

    variables = map_with_name(pick, fresh)
    lost = f"{origin}/encoder/registers"
    if lost in available and is_task and not any(name.endswith("encoder/registers") for name in loaded):
        raise ConfigError(
            "init_from has an encoder with registers, as a distillation token is one, without which it is another; set "
            f"model.num_registers={available[lost].shape[0]}."
        )
    if not loaded:
        raise ConfigError(
            "init_from has no parameter of the same name and shape as this run; check model and init_parts."
        )
    lines = [
        f"  {title}: {len(names)} arrays" + (f" ({', '.join(_parts(names))})" if names else "")
        for title, names in (("loaded", loaded), ("resized", resized), ("left as initialised", left))
    ]
    return variables, lines


def check_same_config(
    saved: Mapping[str, Any], config: ConfigDict, allow_change: bool, free: Collection[str] = ()
) -> None:
    """Raises ConfigError naming the keys in which a checkpoint's config differs from this run's, unless they may.

    `free` are more keys that may, like "teacher/weights".
    """
    from mim_jax.config import resolve

    before, now = _flat_config(resolve(saved).to_dict()), _flat_config(config.to_dict())
    allowed = _FREE_TO_CHANGE + (_CHANGE_WHEN_ASKED if allow_change else ())
    different = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    different = [key for key in different if key not in free and not key.startswith("init_")]
    refused = [key for key in different if key.split("/")[0] not in allowed]
    if refused:
        changes = ", ".join(f"{key.replace('/', '.')} {before.get(key)!r} -> {now.get(key)!r}" for key in refused[:8])
        askable = all(key.split("/")[0] in _CHANGE_WHEN_ASKED for key in refused)
        remedy = "pass --allow_config_change to go on all the same" if askable else "use another workdir"
        raise ConfigError(f"The checkpoint was made with another config ({changes}); {remedy}.")


def _flat(tree: Any) -> dict[str, Any]:
    return dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))


def _flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat_config(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _parts(names: list[str]) -> list[str]:
    return sorted({"/".join(name.split("/")[:2]) for name in names})


def _resize_table(table: np.ndarray, shape: tuple[int, ...], source: Objective | None, target: Objective | None):
    if source is None or target is None or table.shape[1] != shape[1]:
        raise ConfigError(f"A position table of shape {table.shape} cannot become one of shape {shape}.")
    old, new = source.encoder.grid, target.encoder.grid
    prefix = table.shape[0] - old[0] * old[1]
    return np.concatenate([table[:prefix], resize_position_table(table[prefix:], old, new)])


def _resize_window_tables(tables: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Tables `[layers, n * n, heads]` of square windows, one a layer, for windows of another size."""
    old, new = (math.isqrt(count) for count in (tables.shape[1], shape[1]))
    if (tables.shape[0], tables.shape[2]) != (shape[0], shape[2]) or old**2 != tables.shape[1] or new**2 != shape[1]:
        raise ConfigError(f"Tables of relative positions of shape {tables.shape} cannot become ones of shape {shape}.")
    return np.stack([resize_relative_table(table, (old, old), (new, new)) for table in tables])
