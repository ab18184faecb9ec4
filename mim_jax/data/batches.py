"""The two streams of batches: infinite and shuffled for training, once and in order for evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from mim_jax.data.bad_images import BadImages
from mim_jax.data.config import check_config
from mim_jax.data.loading import ArrayLoader, Batch, EncodedLoader, FeatureLoader, Loader, Replace
from mim_jax.data.order import TrainOrder, local_slice
from mim_jax.data.pool import PooledBatches, Request, num_workers
from mim_jax.data.sources import Examples, eval_split, open_dataset, open_examples
from mim_jax.data.stored_features import open_features
from mim_jax.data.transform import eval_transform
from mim_jax.data.views import BatchView, single_view, train_views
from mim_jax.errors import ConfigError, DataError


def train_batches(
    config: ConfigDict, *, start_step: int = 0, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """This process's slices of the global batches of steps `start_step`, `start_step + 1`, ... without end.

    A batch is a pure function of `config.seed` and the step: it is the same after a restart and, put together, for any
    number of processes. Each epoch shows every example once, or with `config.data.repeats` a part of them that many
    times each. An unreadable image is replaced by another of its epoch.

    Returns:
      `image` float32 `[b, H, W, C]`, normalised, `view2` of the same form where `config.data.views` asks for two views,
      and `label` int32 `[b]` where the data is labelled, with b = `config.batch_size / process_count`. With
      `config.data.teacher_cache` also the arrays stored there, as they are stored, and `index` int64 `[b]`.

    Raises:
      ConfigError: a setting is impossible or does not fit the data. This and the next are raised by the call itself.
      DataError: the data is missing, empty or smaller than a batch. While iterating: unreadable storage, too many
        unreadable images, labels out of range.
    """
    check_config(config)
    if start_step < 0:
        raise ConfigError(f"start_step is {start_step}; training steps count from 0.")
    examples = open_examples(config, config.data.train_split)
    offset, length = local_slice(config.batch_size, process_index, process_count)
    if len(examples) < config.batch_size:
        raise DataError(
            f"{examples.name} has {len(examples)} images, fewer than batch_size {config.batch_size}; lower batch_size."
        )
    views = train_views(config, examples)
    order = TrainOrder(config.seed, len(examples), config.batch_size, config.data.repeats)
    bad = BadImages(config.data.max_bad_fraction, len(examples))
    loader = _loader(examples, views, bad, order.replacement)
    labelled = _labelled(examples)
    stored = open_features(config, len(examples))
    if stored is not None:
        loader = FeatureLoader(loader, stored)

    def requests() -> Iterator[Request]:
        for step in itertools.count(start_step):
            positions = order.positions(step, offset, length)
            indices, out = order.indices(positions), _allocate(length, views, labelled)
            if stored is not None:
                out |= {"index": indices.copy(), **stored.allocate(length)}
            yield positions, indices, out

    return PooledBatches(requests(), loader, num_workers(config.data.num_workers), config.data.prefetch)


def eval_batches(
    config: ConfigDict,
    split: str | None = None,
    *,
    batch_size: int,
    indices: np.ndarray | None = None,
    training_views: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """This process's slices of one pass over `split` in its stored order, under the evaluation transform.

    Over all processes every example appears exactly once; all processes yield the same number of batches, and the last
    ones are padded with zeros. `split` defaults to `config.data.eval_split`; `batch_size` is global. With `indices [n]`
    the pass is over those examples alone, in that order; no others are read. With `training_views` they are shown as in
    training, `view2` included, each always in the same way.

    Returns:
      `image` and `label` as in `train_batches`, `valid` bool `[b]`, false for padding and unreadable images, and
      `index` int64 `[b]`, the example's number in the split, -1 for padding.

    Raises:
      ConfigError, DataError: as `train_batches`.
    """
    check_config(config)
    split = split or eval_split(config, open_dataset(config))
    if split is None:
        raise DataError(f"{config.data.source} has no split to evaluate on; set data.eval_split.")
    examples = open_examples(config, split)
    offset, length = local_slice(batch_size, process_index, process_count)
    views = train_views(config, examples) if training_views else single_view(eval_transform(config, examples))
    chosen = np.arange(len(examples), dtype=np.int64) if indices is None else np.asarray(indices, np.int64)
    if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(examples):
        raise DataError(f"indices run from {chosen.min()} to {chosen.max()}, but {examples.name} has {len(examples)}.")
    bad = BadImages(config.data.max_bad_fraction, len(chosen))
    loader = _loader(examples, views, bad, None)
    labelled = _labelled(examples)

    def requests() -> Iterator[Request]:
        for first in range(offset, len(chosen) + offset, batch_size):
            local = chosen[first : first + length]
            out = _allocate(length, views, labelled)
            for view in views:
                out[view.name][len(local) :] = 0.0
            out["valid"] = np.arange(length) < len(local)
            out["index"] = np.full(length, -1, np.int64)
            out["index"][: len(local)] = local
            yield local, local, out

    workers = num_workers(config.data.num_workers)
    return PooledBatches(requests(), loader, workers, config.data.prefetch, at_end=bad.check)


def _loader(examples: Examples, views: Sequence[BatchView], bad: BadImages, replace: Replace | None) -> Loader:
    if hasattr(examples, "gather"):
        return ArrayLoader(examples, views)
    return EncodedLoader(examples, views, bad, replace)


def _labelled(examples: Examples) -> bool:
    labelled = getattr(examples, "labelled", None)
    return examples.num_classes is not None if labelled is None else labelled


def _allocate(length: int, views: Sequence[BatchView], labelled: bool) -> Batch:
    # A view made of another one has its form.
    transform = next(view.transform for view in views if view.transform is not None)
    out = {view.name: np.empty((length, *transform.size, transform.channels), np.float32) for view in views}
    if labelled:
        out["label"] = np.zeros(length, np.int32)
    return out
