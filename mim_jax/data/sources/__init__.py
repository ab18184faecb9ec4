"""Sources of images behind one interface; `open_examples` finds the right one by the scheme of `data.source`."""

from __future__ import annotations

import functools
from typing import Protocol

from ml_collections import ConfigDict

from mim_jax.data.config import image_hw
from mim_jax.data.sources.examples import ArrayExamples as ArrayExamples
from mim_jax.data.sources.examples import EncodedExamples as EncodedExamples
from mim_jax.data.sources.examples import Examples as Examples
from mim_jax.errors import ConfigError, DataError

_AUTOMATIC_EVAL_SPLITS = ("validation", "val", "valid", "test", "eval")
_FORMS = "tfds:NAME, folder:DIR, npz:FILE, idx:DIR, pairs:DIR or synthetic:N"


class Dataset(Protocol):
    """A data set with its splits."""

    name: str
    splits: tuple[str, ...]

    def open(self, split: str) -> Examples:
        """The examples of `split`."""
        ...


def open_dataset(config: ConfigDict) -> Dataset:
    """The data set `config.data.source` names.

    Raises:
      ConfigError: the source is not of a known form.
      DataError: there is no such data.
    """
    data = config.data
    height, width = image_hw(config.image_size)
    return _dataset(
        data.source,
        data.data_dir,
        data.train_split,
        (data.image_key, data.label_key),
        data.memory_gib * 2**30,
        (height, width, config.channels) if data.source.startswith("synthetic:") else None,
    )


def open_examples(config: ConfigDict, split: str) -> Examples:
    """The examples of `split`, kept open for later calls: changes on disk are not seen by the same process.

    Raises:
      DataError: there is no such split (the message lists those that exist), or it is empty.
    """
    dataset = open_dataset(config)
    check_split(dataset, split)
    return _examples(dataset, split)


def summarize(dataset: Dataset, split: str) -> Examples:
    """The attributes of the examples of `split`, without reading images where metadata has them; raises DataError."""
    check_split(dataset, split)
    return dataset.summary(split) if hasattr(dataset, "summary") else _examples(dataset, split)


def eval_split(config: ConfigDict, dataset: Dataset) -> str | None:
    """The split to evaluate on: `config.data.eval_split`, or the first of the usual names where that is "auto"."""
    if config.data.eval_split != "auto":
        return config.data.eval_split
    return next((name for name in _AUTOMATIC_EVAL_SPLITS if name in dataset.splits), None)


def check_split(dataset: Dataset, split: str) -> None:
    """Raises DataError naming the existing splits if `split` is none of them; TFDS checks sliced ones itself."""
    sliced = dataset.name.startswith("tfds:") and ("[" in split or "+" in split)
    if split not in dataset.splits and not sliced:
        raise DataError(
            f"{dataset.name} has no split {split!r}; set data.train_split and data.eval_split to one of "
            f"{', '.join(dataset.splits)}."
        )


@functools.lru_cache(maxsize=4)
def _examples(dataset: Dataset, split: str) -> Examples:
    examples = dataset.open(split)
    if len(examples) == 0:
        raise DataError(f"{examples.name} has no examples; choose another split.")
    return examples


@functools.lru_cache(maxsize=4)
def _dataset(
    source: str,
    data_dir: str | None,
    train_split: str,
    keys: tuple[str, str],
    memory_bytes: float,
    shape: tuple[int, int, int] | None,
) -> Dataset:
    scheme, colon, rest = source.partition(":")
    if not colon or not rest:
        raise ConfigError(f"data.source is {source!r}; write {_FORMS}.")
    if scheme == "synthetic":
        from mim_jax.data.sources.synthetic import SyntheticDataset

        if not rest.isdecimal() or int(rest) == 0:
            raise ConfigError(f"data.source is {source!r}; write the number of images, such as synthetic:1000.")
        return SyntheticDataset(int(rest), shape)
    if scheme == "tfds":
        from mim_jax.data.sources.tfds import TfdsDataset

        return TfdsDataset(rest, data_dir, *keys, memory_bytes)
    if scheme == "folder":
        from mim_jax.data.sources.folder import FolderDataset

        return FolderDataset(rest, train_split)
    if scheme == "pairs":
        from mim_jax.data.sources.pairs import PairsDataset

        return PairsDataset(rest, train_split)
    if scheme in ("npz", "idx"):
        from mim_jax.data.sources.arrays import IdxDataset, NpzDataset

        return NpzDataset(rest) if scheme == "npz" else IdxDataset(rest)
    raise ConfigError(f"data.source is {source!r}, whose form {scheme!r} is unknown; write {_FORMS}.")
