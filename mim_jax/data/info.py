"""Facts about a run's data that the loop and the model need before the first batch."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from mim_jax.data.config import check_config
from mim_jax.data.sources import eval_split, open_dataset, summarize
from mim_jax.data.transform import check_fit
from mim_jax.data.views import check_pairs
from mim_jax.errors import DataError
from mim_jax.normalization import normalization


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """Sizes and classes of a data set. `fingerprint` changes when the training examples or their order do."""

    num_train_examples: int
    num_eval_examples: int  # 0: no evaluation split
    num_classes: int | None  # None: unlabelled
    class_names: tuple[str, ...] | None
    image_shape: tuple[int, int, int] | None  # (H, W, C) as stored; None where images differ in size
    fingerprint: str


def data_info(config: ConfigDict) -> DataInfo:
    """Looks the data up without decoding it (arrays on disk are read once and kept).

    Raises:
      ConfigError: a setting of the `data` section is impossible, or the images do not fit it.
      DataError: the data is missing or empty, a split does not exist, or the splits' labels do not match.
    """
    check_config(config)
    normalization(config)
    dataset = open_dataset(config)
    train = summarize(dataset, config.data.train_split)
    if len(train) == 0:
        raise DataError(f"{train.name} has no examples; choose another data.train_split.")
    check_fit(config, train)
    check_pairs(config, train)
    evaluation = eval_split(config, dataset)
    num_eval = 0
    if evaluation is not None:
        examples = summarize(dataset, evaluation)
        num_eval = len(examples)
        if train.num_classes and (examples.num_classes or 0) > train.num_classes:
            raise DataError(
                f"{examples.name} has labels up to {examples.num_classes - 1}, but those of {train.name} end at "
                f"{train.num_classes - 1}; number the classes of both splits alike."
            )
    return DataInfo(len(train), num_eval, train.num_classes, train.class_names, train.image_shape, train.fingerprint)
