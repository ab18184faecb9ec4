"""TensorFlow, imported when it is first needed and kept off the GPUs."""

from __future__ import annotations

import functools
import logging
import os
from types import ModuleType

_LOGGER = logging.getLogger(__name__)


@functools.lru_cache(maxsize=1)
def import_tensorflow() -> ModuleType | None:
    """TensorFlow with its hands off the GPUs, or None where it is not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # not used for decoding, and announced on every start
    try:
        import tensorflow as tf
    except ImportError:
        return None
    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError:
        _LOGGER.warning("TensorFlow was used before mim_jax.data and may hold GPU memory.")
    return tf
