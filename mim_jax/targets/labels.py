"""Class labels as targets of a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.errors import ConfigError, DataError


def check_num_classes(num_classes: int) -> None:
    """Raises ConfigError for fewer than two classes."""
    if num_classes < 2:
        raise ConfigError(f"num_classes is {num_classes}; a classifier needs at least 2.")


def read_labels(batch: Mapping[str, Any], num_classes: int) -> jax.Array:
    """`batch["label"]` as `[B]` int32.

    Raises:
      DataError: the batch has no labels or, where their values are known (outside `jit`), one that is no class.
    """
    if "label" not in batch:
        raise DataError(
            "A classifier needs labelled images, and this batch has no 'label'; choose a labelled data source."
        )
    labels = batch["label"]
    if not isinstance(labels, jax.core.Tracer):
        values = np.asarray(labels)  # also where a function that is traced closes over them
        lowest, highest = int(values.min()), int(values.max())
        if lowest < 0 or highest >= num_classes:
            wrong = lowest if lowest < 0 else highest
            raise DataError(
                f"Label {wrong} is not one of the num_classes={num_classes} classes; set num_classes to fit."
            )
    return jnp.asarray(labels, jnp.int32)


def smoothed_targets(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Class probabilities `[B, num_classes]` float32: `smoothing / num_classes` everywhere, the rest at the label."""
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return (1.0 - smoothing) * one_hot + smoothing / num_classes
