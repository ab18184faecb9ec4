"""Training of a sweep of linear classifiers: on features computed once, or on augmented images through the encoder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mim_jax import data
from mim_jax.contract import Variables
from mim_jax.data import color
from mim_jax.data.order import TrainOrder
from mim_jax.errors import ConfigError
from mim_jax.evaluation.bench import Bench, Snapshot
from mim_jax.evaluation.features import FeatureSet, select_feature
from mim_jax.evaluation.linear import LinearSweep, SweepState, count_correct
from mim_jax.evaluation.placement import Placement

_MAX_CHUNK = 4096  # rows classified at once


class CachedFit:
    """Trains on features of the training split under the evaluation transform. Partial batches are dropped."""

    def __init__(self, bench: Bench, settings: ConfigDict, held: np.ndarray):
        """`held`: numbers of the training images, rising, that are not trained on."""
        self._bench, self._settings = bench, settings
        self._kept = np.setdiff1d(np.arange(bench.split_size("train")), held, assume_unique=True)
        size = min(settings.batch_size, len(self._kept))
        # Rounded down so that it splits evenly over the devices.
        self.batch_size = size - size % bench.place.shards
        if self.batch_size < 2:
            raise ConfigError(
                f"evaluation.linear trains on {len(self._kept)} images in batches of {settings.batch_size} on "
                f"{bench.place.shards} devices; raise evaluation.linear.batch_size or use more images."
            )
        self.steps_per_epoch = len(self._kept) // self.batch_size
        self._epoch = jax.jit(self._train_epoch, static_argnames="sweep", donate_argnames="state")

    def __call__(self, snapshot: Snapshot, sweep: LinearSweep, state: SweepState, epochs: int) -> SweepState:
        """The state after `epochs` passes."""
        place = self._bench.place
        # Computed for the whole split: the images held out are needed for the choice anyway.
        examples = snapshot.features("train", self._settings.feature).take(self._kept)
        features, labels = place.replicate((examples.features, examples.labels))
        with self._bench.progress(epochs, "linear probe", " epochs") as advance:
            for epoch in range(epochs):
                number = place.replicate(np.asarray(epoch, np.int32))
                state = jax.block_until_ready(self._epoch(state, features, labels, number, sweep=sweep))
                advance(1)
        return state

    def _train_epoch(
        self, state: SweepState, features: jax.Array, labels: jax.Array, epoch: jax.Array, *, sweep: LinearSweep
    ) -> SweepState:
        rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(self._bench.config.seed), 1), epoch)
        # Resized, not cut: where images were unreadable there are fewer than planned, and the first ones come twice.
        order = jnp.resize(jax.random.permutation(rng, len(features)), (self.steps_per_epoch, self.batch_size))

        def step(state: SweepState, rows: jax.Array) -> tuple[SweepState, jax.Array]:
            batch = jax.lax.with_sharding_constraint((features[rows], labels[rows]), self._bench.place.batch)
            return sweep.update(state, *batch)

        return jax.lax.scan(step, state, order)[0]


class StreamedFit:
    """Trains on random crops and flips of the training images, encoded at every step; nothing reaches the encoder."""

    def __init__(self, bench: Bench, settings: ConfigDict, held: np.ndarray):
        """`held`: numbers of the training images, rising, that are not trained on."""
        self._bench, self._settings, self._held = bench, settings, held
        size, shards = bench.split_size("train"), bench.place.shards
        if settings.batch_size % shards or not shards <= settings.batch_size <= size:
            raise ConfigError(
                f"evaluation.linear.batch_size is {settings.batch_size}; with augment it must be a multiple of the "
                f"{shards} devices and at most the {size} training images."
            )
        self.batch_size = settings.batch_size
        self.steps_per_epoch = size // self.batch_size
        self._config = _augmented(bench.config, settings)
        self._step = jax.jit(self._train_step, static_argnames="sweep", donate_argnames="state")

    def __call__(self, snapshot: Snapshot, sweep: LinearSweep, state: SweepState, epochs: int) -> SweepState:
        """The state after `epochs` passes."""
        place, total = self._bench.place, epochs * self.steps_per_epoch
        stream = data.prefetch(self._batches(), place.put)
        with stream, self._bench.progress(total * self.batch_size, "linear probe") as advance:
            for _ in range(total):
                state = self._step(state, snapshot.variables, next(stream), sweep=sweep)
                jax.block_until_ready(state.step)
                advance(self.batch_size)
        return state

    def _train_step(
        self, state: SweepState, variables: Variables, batch: dict[str, jax.Array], *, sweep: LinearSweep
    ) -> SweepState:
        encoded = self._bench.objective.encode(variables, batch["image"])
        features = jax.lax.stop_gradient(select_feature(encoded, self._settings.feature))
        return sweep.update(state, features, batch["label"])[0]

    def _batches(self) -> Iterator[dict[str, np.ndarray]]:
        """This process's slices; the place of a held-out image is taken by another one of the same slice."""
        process = dict(process_index=jax.process_index(), process_count=jax.process_count())
        order = TrainOrder(self._config.seed, self._bench.split_size("train"), self.batch_size)
        length = self.batch_size // process["process_count"]
        # Closed here, not when it is collected: the stream has threads of its own.
        with contextlib.closing(data.train_batches(self._config, **process)) as stream:
            for step, batch in enumerate(stream):
                indices = order.indices(order.positions(step, process["process_index"] * length, length))
                rows = stand_ins(np.isin(indices, self._held), np.random.default_rng([self._config.seed, step]))
                yield {key: batch[key][rows] for key in ("image", "label")}


def stand_ins(held: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Row numbers `[n]`: each row its own, a `held [n]` one that of a random row which is not.

    Raises:
      ConfigError: all rows are held out.
    """
    free = np.flatnonzero(~held)
    if not free.size:
        raise ConfigError(
            "A batch of evaluation.linear holds nothing but held-out images; raise its batch_size or lower its holdout."
        )
    return np.where(held, rng.choice(free, len(held)), np.arange(len(held)))


def count_right(state: SweepState, examples: FeatureSet, place: Placement) -> np.ndarray:
    """How many of the examples each classifier of a sweep gets right, `[L]`."""
    chunk = place.multiple(min(_MAX_CHUNK, len(examples)))
    total = np.zeros(len(state.params["bias"]), np.int64)
    for start in range(0, len(examples), chunk):
        rows = slice(start, start + chunk)
        valid = np.ones(len(examples.features[rows]), bool)
        arrays = (examples.features[rows], examples.labels[rows], valid)
        total += place.fetch(_count_correct(state, *(place.split(place.pad(array, chunk)) for array in arrays)))
    return total


_count_correct = jax.jit(count_correct)


def _augmented(config: ConfigDict, settings: ConfigDict) -> ConfigDict:
    """The run's config with the training transform of the probe (the official code's plain random resized crop)."""
    config = ConfigDict(config.to_dict())
    config.batch_size = settings.batch_size
    config.data.update(crop="random_resized", crop_scale=tuple(settings.crop_scale), rand_augment=None)
    config.data.update(views="one", trivial_augment=False, repeats=1, random_erasing=0.0, **color.OFF)
    return config
