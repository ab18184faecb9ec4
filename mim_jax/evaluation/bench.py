"""What the evaluations of a run share: the objective, the data, the compiled encoder, and one snapshot of weights."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mim_jax import data
from mim_jax.contract import Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.evaluation.features import FeatureExtractor, FeatureSet, select_feature
from mim_jax.evaluation.placement import Placement


class Bench:
    """The fixed surroundings of a run's evaluations, looked up and checked once."""

    def __init__(self, objective: Objective, config: ConfigDict, mesh: Mesh):
        """Raises ConfigError or DataError if the data cannot be evaluated."""
        self.objective, self.config, self.mesh = objective, config, mesh
        self.info = data.data_info(config)
        self.place = Placement(mesh)
        self.extractor = FeatureExtractor(objective, mesh)
        if config.evaluation.batch_size < 1:
            raise ConfigError(f"evaluation.batch_size is {config.evaluation.batch_size}; it must be at least 1.")
        # Rounded up to fill the devices evenly, which changes no result.
        self.batch_size = self.place.multiple(config.evaluation.batch_size)

    @functools.cached_property
    def variable_shapes(self) -> Variables:
        """The objective's variables as `jax.ShapeDtypeStruct`."""
        return jax.eval_shape(self.objective.init, jax.random.key(0), self.objective.batch_spec())

    def split_size(self, split: str) -> int:
        """Number of examples of "train" or "eval"."""
        return {"train": self.info.num_train_examples, "eval": self.info.num_eval_examples}[split]

    @property
    def viewing_split(self) -> str:
        """Where images to look at come from: "eval", or "train" where the data has nothing else."""
        return "eval" if self.info.num_eval_examples else "train"

    def require_eval_split(self, task: str) -> None:
        """Raises ConfigError if there is no evaluation split."""
        if not self.info.num_eval_examples:
            raise ConfigError(
                f"evaluation task {task!r} needs an evaluation split, and {self.config.data.source} has none; set "
                f"data.eval_split or remove {task!r} from evaluation.tasks."
            )

    def require_classes(self, task: str) -> int:
        """The number of classes; raises ConfigError if the data is not labelled."""
        if self.info.num_classes is None:
            raise ConfigError(
                f"evaluation task {task!r} needs labels, and {self.config.data.source} has none; choose a labelled "
                f"data.source or remove {task!r} from evaluation.tasks."
            )
        return self.info.num_classes

    def feature_width(self, feature: str) -> int:
        """Length of a feature vector; raises ConfigError if the objective has no such feature."""
        images = self.objective.batch_spec()["image"]
        encoded = jax.eval_shape(self.objective.encode, self.variable_shapes, images)
        return jax.eval_shape(lambda e: select_feature(e, feature), encoded).shape[-1]

    def subset(self, split: str, limit: int | None) -> np.ndarray | None:
        """Numbers of `limit` random examples, rising, the same for every call and run of a seed; None: all of them."""
        size = self.split_size(split)
        if limit is None or limit >= size:
            return None
        return np.sort(np.random.default_rng(self.config.seed).permutation(size)[:limit])

    def batches(self, split: str, indices: np.ndarray | None = None) -> Iterator[dict[str, np.ndarray]]:
        """This process's slices of one pass over "train" or "eval" under the evaluation transform."""
        return data.eval_batches(
            self.config,
            self._stored_split(split),
            indices=indices,
            batch_size=self.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def examples(self, split: str, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples numbered `indices [n]` as one batch, whole on every process, in that order.

        An objective that reads two views of each example gets views as in training.
        """
        (batch,) = data.eval_batches(
            self.config,
            self._stored_split(split),
            indices=indices,
            batch_size=len(indices),
            training_views="view2" in self.objective.batch_spec(),
        )
        return batch

    def _stored_split(self, split: str) -> str | None:
        return self.config.data.train_split if split == "train" else None

    @contextlib.contextmanager
    def progress(self, total: int, label: str, unit: str = " images") -> Iterator[Callable[[int], object]]:
        """A progress bar where `config.log.progress` wants one (None: on a terminal); yields what advances it."""
        wanted = self.config.log.progress
        shown = (sys.stderr.isatty() if wanted is None else wanted) and jax.process_index() == 0
        with tqdm.tqdm(total=total, desc=label, unit=unit, disable=not shown, leave=False, dynamic_ncols=True) as bar:
            yield bar.update


class Snapshot:
    """Weights at one step, and their features, computed once for all tasks that ask for them."""

    def __init__(self, bench: Bench, variables: Variables, step: int, out_dir: pathlib.Path):
        self.bench, self.variables, self.step, self.out_dir = bench, variables, step, out_dir
        self._known: dict[tuple[str, str, bytes | None], FeatureSet] = {}

    def features(self, split: str, feature: str, indices: np.ndarray | None = None) -> FeatureSet:
        """Features of "train" or "eval", of all examples or of those numbered `indices` (rising)."""
        whole = self._known.get((split, feature, None))
        if whole is not None:
            return whole if indices is None else whole.take(indices)
        key = (split, feature, None if indices is None else indices.tobytes())
        if key not in self._known:
            total = self.bench.split_size(split) if indices is None else len(indices)
            with self.bench.progress(total, f"features of the {split} split") as advance:
                batches = self.bench.batches(split, indices)
                self._known[key] = self.bench.extractor(self.variables, batches, feature, advance=advance)
        return self._known[key]
