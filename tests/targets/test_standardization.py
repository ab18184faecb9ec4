"""Targets standardised by running moments: the order of reading and moving them, and where the epsilons are."""

import jax
import numpy as np
import pytest

from mim_jax.targets.standardization import initial_moments, standardize


def features(shape=(6, 5, 4), seed=0):
    return np.random.default_rng(seed).normal(2.0, 3.0, shape).astype(np.float32)


def test_the_first_batch_is_left_alone_and_its_moments_are_copied():
    x = features()
    out, moments = standardize(x, initial_moments(4), 1.0)
    np.testing.assert_allclose(out, x, rtol=2e-6)  # over 1 + 1e-6
    np.testing.assert_allclose(moments["mean"], x.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(moments["std"], x.std((0, 1), ddof=1) + 1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(20, 4), (6, 5, 4)])
def test_the_same_batch_again_has_mean_0_and_unbiased_std_1(shape):
    x = features(shape)
    _, moments = standardize(x, initial_moments(4), 1.0)
    out = np.asarray(standardize(x, moments, 1.0)[0]).reshape(-1, 4)
    np.testing.assert_allclose(out.mean(0), 0.0, atol=2e-6)
    np.testing.assert_allclose(out.std(0, ddof=1), 1.0, rtol=5e-6)


def test_momentum_is_the_weight_of_the_new_batch():
    x, old = features(), {"mean": features((4,), 1), "std": np.abs(features((4,), 2))}
    out, moved = standardize(x, old, 0.25)
    np.testing.assert_allclose(out, (x - old["mean"]) / (old["std"] + 1e-6), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved["mean"], 0.75 * old["mean"] + 0.25 * x.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(moved["std"], 0.75 * old["std"] + 0.25 * x.std((0, 1), ddof=1), rtol=1e-5)


def test_without_momentum_nothing_moves():
    old = {"mean": features((4,), 1), "std": np.abs(features((4,), 2))}
    jax.tree.map(np.testing.assert_array_equal, standardize(features(), old, 0.0)[1], old)


def test_a_constant_channel_is_divided_by_two_epsilons():
    x = np.ones((4, 1), np.float32)
    _, moments = standardize(x, initial_moments(1), 1.0)
    out, _ = standardize(x + np.float32(0.5), moments, 1.0)
    np.testing.assert_allclose(out, 0.5 / 2e-6, rtol=1e-5)
