import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mim_jax.targets.features import normalized_features, smooth_l1

FEATURES = np.random.default_rng(0).normal(3.0, 2.0, (2, 5, 16)).astype(np.float32)


def test_normalized_features_are_a_layer_norm_without_parameters():
    expected = torch.nn.functional.layer_norm(torch.tensor(FEATURES), (16,), eps=1e-6)
    np.testing.assert_allclose(normalized_features(jnp.asarray(FEATURES)), expected, atol=1e-5)
    assert normalized_features(jnp.asarray(FEATURES, jnp.bfloat16)).dtype == jnp.float32


def test_a_mean_far_above_the_deviation_costs_no_digits():
    """`mean(x^2) - mean(x)^2` would be off by a thousandth: PyTorch takes the variance about the mean."""
    features = 20.0 * FEATURES + np.float32(1000.0)
    expected = torch.nn.functional.layer_norm(torch.tensor(features).double(), (16,), eps=1e-5)
    np.testing.assert_allclose(normalized_features(jnp.asarray(features), 1e-5), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("distance", [0.0, 0.5, -1.9, 2.0, 2.1, -7.0])
def test_smooth_l1_of_beta_2(distance):
    found = smooth_l1(jnp.asarray(FEATURES + np.float32(distance)), jnp.asarray(FEATURES), 2.0)
    expected = distance**2 / 4 if abs(distance) < 2 else abs(distance) - 1
    np.testing.assert_allclose(found, expected, atol=3e-6)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_smooth_l1_is_pytorchs(beta):
    other = FEATURES[::-1].copy()
    expected = torch.nn.functional.smooth_l1_loss(torch.tensor(FEATURES), torch.tensor(other), beta=beta)
    np.testing.assert_allclose(smooth_l1(jnp.asarray(FEATURES), jnp.asarray(other), beta).mean(), expected, rtol=1e-6)
