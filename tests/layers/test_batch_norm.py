import jax
import numpy as np
import pytest
import torch

from mim_jax.errors import ConfigError
from mim_jax.layers.batch_norm import initial_statistics, normalize, normalize_batch


def test_training_and_running_statistics_equal_pytorch():
    peer = torch.nn.BatchNorm1d(5, affine=False, eps=1e-6, momentum=0.1)
    statistics = initial_statistics(5)
    step = jax.jit(normalize_batch)
    rng = np.random.default_rng(0)
    for _ in range(3):
        features = rng.normal(2.0, 3.0, (6, 5)).astype(np.float32)
        normalized, statistics = step(features, statistics)
        np.testing.assert_allclose(normalized, peer(torch.from_numpy(features)).numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(statistics["mean"], peer.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(statistics["variance"], peer.running_var.numpy(), rtol=1e-5)

    peer.eval()
    features = rng.normal(size=(1, 5)).astype(np.float32)
    np.testing.assert_allclose(
        normalize(features, statistics), peer(torch.from_numpy(features)).numpy(), rtol=1e-5, atol=1e-5
    )


def test_epsilon_can_be_another():
    features = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    peer = torch.nn.BatchNorm1d(5, affine=False, eps=0.5)
    normalized, statistics = normalize_batch(features, initial_statistics(5), 0.5)
    np.testing.assert_allclose(normalized, peer(torch.from_numpy(features)).numpy(), rtol=1e-5, atol=1e-6)
    peer.eval()
    tested = normalize(features, statistics, 0.5)
    np.testing.assert_allclose(tested, peer(torch.from_numpy(features)).numpy(), rtol=1e-5, atol=1e-6)


def test_one_example_is_refused():
    with pytest.raises(ConfigError, match="batch_size"):
        normalize_batch(np.ones((1, 3), np.float32), initial_statistics(3))
