"""What frozen teachers say of every training image: written to disk once, and checked before it is learned from."""

from __future__ import annotations

import collections
import json
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mim_jax import data
from mim_jax.contract import Batch, Objective, Variables, stored_name
from mim_jax.data.sources.examples import text_digest
from mim_jax.data.stored_features import (
    TOOL,
    FeatureWriter,
    Manifest,
    StoredArray,
    StoredFeatures,
    check_unchanging,
    open_features,
    to_records,
)
from mim_jax.errors import ConfigError
from mim_jax.layers.compute import compute_dtype
from mim_jax.normalization import normalization
from mim_jax.training.integrity import tree_checksums
from mim_jax.training.program import Program
from mim_jax.training.sharding import on_mesh, put_batch, replicated
from mim_jax.training.teachers import section_name

logger = logging.getLogger(__name__)

DTYPES = ("float16", "bfloat16", "float32")
_SHARD_BYTES = 2**28
_IN_FLIGHT = 2  # batches the devices may be behind the host
# How far what is stored may be from what is computed: rounding, on other hardware and in batches of another size.
_TOLERANCE = 1e-2
_ROUNDINGS = 8  # by how many relative roundings of the coarsest dtype, where that is more
_INTEGERS_THAT_MAY_DIFFER = 0.05  # a share: near ties fall either way


class CacheMaker:
    """Writes what the teachers of a program's objective say of its training images to a folder."""

    def __init__(
        self, program: Program, info: data.DataInfo, variables: Variables, directory: pathlib.Path, dtype: str
    ):
        """Goes on with the folder where it was begun with the same settings.

        Args:
          variables: of the objective, with its teachers' weights.
          dtype: one of `DTYPES`, of all floating arrays that it makes smaller.

        Raises:
          ConfigError: the teachers say nothing that could be stored, images change from epoch to epoch, or the folder
            holds something else.
        """
        config = program.config
        self._config, self._mesh, self._dtype = config, program.mesh, dtype
        self._objective, self._variables = program.objective, {"teacher": variables["teacher"]}
        arrays = {
            name: StoredArray(shape, str(_narrower(leaf_dtype, dtype)))
            for name, (shape, leaf_dtype) in taught_features(program.objective).items()
        }
        size = max(sum(array.num_bytes for array in arrays.values()), 1)
        shard = max(_SHARD_BYTES // (size * config.batch_size), 1) * config.batch_size
        source = {**data_source(config, info), **teacher_source(program.objective, variables)}
        self.writer = FeatureWriter(directory, Manifest(arrays, info.num_train_examples, shard, source))
        self._compute = jax.jit(on_mesh(self._forward, program.mesh))

    def run(self, part: int = 0, parts: int = 1, advance: Callable[[int], object] = lambda examples: None) -> bool:
        """Writes the missing ones of every `parts`-th file, from file `part` on.

        `advance` is called with the numbers of examples that are done, those of earlier attempts first.

        Returns:
          Whether the folder is whole.
        """
        manifest, missing = self.writer.manifest, set(self.writer.missing())
        mine = range(part, manifest.num_shards, parts)
        advance(sum(len(manifest.examples(shard)) for shard in mine if shard not in missing))
        for shard in mine:
            if shard in missing:
                self.writer.write(shard, self._records(shard, advance))
        return self.writer.finish()

    def _records(self, shard: int, advance: Callable[[int], object]) -> Iterator[bytes]:
        batches = data.eval_batches(
            self._config,
            self._config.data.train_split,
            batch_size=self._config.batch_size,
            indices=self.writer.manifest.examples(shard),
            training_views=True,
        )
        pending: collections.deque = collections.deque()
        with data.prefetch(batches, self._put) as stream:
            for batch, valid, rows in stream:
                pending.append((self._compute(self._variables, batch), valid, rows))
                if len(pending) > _IN_FLIGHT:
                    yield from self._finished(*pending.popleft(), advance)
            while pending:
                yield from self._finished(*pending.popleft(), advance)

    def _put(self, batch: dict[str, np.ndarray]) -> tuple[Batch, np.ndarray, int]:
        names = [name for name in self._objective.batch_spec() if name in batch]
        rows = int((batch["index"] >= 0).sum())  # the rest is padding
        return put_batch({name: batch[name] for name in names}, self._mesh), batch["valid"][:rows], rows

    def _forward(self, variables: Variables, batch: Batch) -> tuple[dict[str, jax.Array], jax.Array]:
        """Features in the dtypes they are stored in, by name, and whether those of each example are finite."""
        taught = jax.tree_util.tree_leaves_with_path(self._objective.teach(variables, batch))
        features = {stored_name(path): leaf.astype(_narrower(leaf.dtype, self._dtype)) for path, leaf in taught}
        finite = [jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=1) for x in features.values()]
        return features, jnp.stack(finite).all(axis=0)

    def _finished(
        self, computed: tuple[dict, jax.Array], valid: np.ndarray, rows: int, advance: Callable[[int], object]
    ) -> list[bytes]:
        features, finite = jax.device_get(computed)
        if not finite[:rows][valid].all():
            raise ConfigError(
                f"The teachers say things that are not finite in {self._dtype}; choose another --dtype, such as "
                "bfloat16, or check their weights."
            )
        advance(rows)
        return to_records({name: features[name] for name in self.writer.manifest.arrays}, valid)


def open_cache(config: ConfigDict, objective: Objective, info: data.DataInfo) -> StoredFeatures | None:
    """What `config.data.teacher_cache` names, checked as far as that needs no weights; None where that is None.

    Raises:
      ConfigError: it does not fit the run, or what the run learns from cannot be stored.
      DataError: the folder is not whole.
    """
    if config.data.teacher_cache is None:
        return None
    features = taught_features(objective)
    stored = open_features(config, info.num_train_examples)
    stored.check_source(data_source(config, info))
    shapes = {name: shape for name, (shape, _) in features.items()}
    its = {name: array.shape for name, array in stored.arrays.items()}
    if shapes != its:
        raise ConfigError(
            f"The features in {stored.directory} are {_named(its)}, this run reads {_named(shapes)}; make others with "
            f"{TOOL} in another folder."
        )
    return stored


def check_cache(stored: StoredFeatures, program: Program, info: data.DataInfo, variables: Variables) -> None:
    """Compares checksums of the teachers' weights, and what they say of a few examples with what is stored of them.

    The latter also finds what no name in the manifest tells, such as a choice of other blocks.

    Raises:
      ConfigError: the teachers of the run are not those whose features are stored.
    """
    objective, config, mesh = program.objective, program.config, program.mesh
    stored.check_source(teacher_source(objective, variables))
    count = mesh.shape["data"] * mesh.shape["fsdp"]
    indices = np.linspace(0, info.num_train_examples - 1, count).astype(np.int64)
    (batch,) = data.eval_batches(
        config,
        config.data.train_split,
        batch_size=count,
        indices=indices,
        training_views=True,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    names = [*(name for name in objective.batch_spec() if name in batch), "valid"]
    compute = jax.jit(
        on_mesh(lambda variables, batch: (objective.teach(variables, batch), batch["valid"]), mesh),
        out_shardings=replicated(mesh),
    )
    teachers = {"teacher": variables["teacher"]}
    taught, valid = jax.device_get(compute(teachers, put_batch({name: batch[name] for name in names}, mesh)))
    kept = stored.allocate(int(valid.sum()))
    stored.fill(indices[valid], kept)
    dtypes = [_compute_dtype(objective, teacher) for teacher in objective.teachers.values()]
    for path, array in jax.tree_util.tree_leaves_with_path(taught):
        name = stored_name(path)
        _check_close(stored, name, array[valid], kept[name], dtypes)
    logger.info("Features of the teachers are read from %s.", stored.directory)


def data_source(config: ConfigDict, info: data.DataInfo) -> dict[str, Any]:
    """Which images a run's teachers see, by dotted names of its config."""
    mean, std = normalization(config)
    image_size = config.image_size
    return {
        "method": config.method or config.task,
        "data.train_split": config.data.train_split,
        "image_size": [image_size, image_size] if isinstance(image_size, int) else list(image_size),
        "channels": config.channels,
        "data.mean": [float(value) for value in mean],
        "data.std": [float(value) for value in std],
        "data.crop": config.data.crop,
        "data.interpolation": config.data.interpolation,
        "data.source (its fingerprint)": info.fingerprint,
    }


def teacher_source(objective: Objective, variables: Variables) -> dict[str, Any]:
    """How a run's teachers compute, and checksums of their weights."""
    source = {}
    for name, teacher in objective.teachers.items():
        section = section_name(objective.config, teacher.section)
        checksums = tree_checksums(variables["teacher"][name])
        source[f"{section}.dtype"] = _compute_dtype(objective, teacher)
        source[f"{section}.weights (their checksum)"] = text_digest(json.dumps(checksums, sort_keys=True))
    return source


def _compute_dtype(objective: Objective, teacher: Any) -> str:
    return str(jnp.dtype(compute_dtype(teacher.section.dtype or objective.config.compute.dtype)))


def taught_features(objective: Objective) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape for one example and dtype of what `teach` returns, by name in a batch.

    Raises:
      ConfigError: the objective's teachers say nothing that could be stored, or images change from epoch to epoch.
    """
    check_unchanging(objective.config)
    spec = objective.batch_spec()
    variables = jax.eval_shape(objective.init, jax.random.key(0), spec)
    taught = jax.eval_shape(objective.teach, variables, spec)
    leaves = jax.tree_util.tree_leaves_with_path(taught)
    return {stored_name(path): (leaf.shape[1:], leaf.dtype) for path, leaf in leaves}


def _narrower(dtype: Any, wanted: str) -> Any:
    """The dtype something is stored in: the one wanted, where that is smaller."""
    smaller = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(wanted).itemsize < jnp.dtype(dtype).itemsize
    return jnp.dtype(wanted if smaller else dtype)


def _check_close(stored: StoredFeatures, name: str, computed: np.ndarray, kept: np.ndarray, dtypes: list[str]) -> None:
    if jnp.issubdtype(computed.dtype, jnp.integer):
        difference, limit = float((computed != kept).mean()), _INTEGERS_THAT_MAY_DIFFER
    else:
        one, other = computed.astype(np.float64), kept.astype(np.float64)
        difference = float(np.linalg.norm(one - other) / max(np.linalg.norm(one), np.finfo(np.float64).tiny))
        limit = max(_TOLERANCE, _ROUNDINGS * max(float(jnp.finfo(jnp.dtype(d)).eps) for d in (*dtypes, kept.dtype)))
    if not difference <= limit:
        raise ConfigError(
            f"What {stored.directory} says of the training images as {name} differs by {difference:.2g} of itself from "
            f"what the run's teachers say (more than {limit:.2g}); make other features with {TOOL} in another folder."
        )


def _named(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
