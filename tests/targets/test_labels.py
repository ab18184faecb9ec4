import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import ConfigError, DataError
from mim_jax.targets.labels import check_num_classes, read_labels, smoothed_targets


def test_smoothing_values_of_imagenet():
    targets = np.asarray(smoothed_targets(jnp.asarray([7, 999], jnp.int32), 1000, 0.1))
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets[[0, 1], [7, 999]], 0.9001, rtol=1e-6)
    np.testing.assert_allclose(targets[0, np.arange(1000) != 7], 1e-4, rtol=1e-6)
    np.testing.assert_allclose(targets.sum(axis=1), 1.0, rtol=1e-5)


def test_no_smoothing_is_one_hot():
    np.testing.assert_array_equal(smoothed_targets(jnp.asarray([2, 0], jnp.int32), 3, 0.0), np.eye(3)[[2, 0]])


def test_missing_and_impossible_labels_are_named():
    with pytest.raises(DataError, match="no 'label'"):
        read_labels({"image": jnp.zeros((2, 4, 4, 1))}, 10)
    with pytest.raises(DataError, match=r"Label 10 .*num_classes=10"):
        read_labels({"label": np.asarray([0, 10])}, 10)
    with pytest.raises(DataError, match="Label -1"):
        read_labels({"label": np.asarray([-1, 3])}, 10)


def test_labels_are_int32_and_traceable():
    labels = np.asarray([0, 9], np.int64)
    assert read_labels({"label": labels}, 10).dtype == jnp.int32
    traced = jax.jit(lambda batch: read_labels(batch, 10))({"label": labels.astype(np.int32)})
    np.testing.assert_array_equal(traced, labels)


def test_one_class_is_refused():
    with pytest.raises(ConfigError, match="num_classes is 1"):
        check_num_classes(1)
