"""Targets of feature alignment against PyTorch, their distances, and the weights of levels."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mim_jax.errors import ConfigError
from mim_jax.targets.alignment import DISTANCES, NORMALIZATIONS, distance, level_weights, normalize_target


@pytest.fixture
def features():
    x = np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)
    return 3.0 * x + np.linspace(-2, 2, 12, dtype=np.float32)


def expected_target(x, kind):
    y = torch.from_numpy(x)
    return {
        "whiten": lambda: F.layer_norm(y, (y.shape[-1],)),
        "l2": lambda: F.normalize(y, dim=-1),
        "bn": lambda: (y - y.mean()) / (y.var() + 1e-6) ** 0.5,
        "none": lambda: y,
    }[kind]().numpy()


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_targets_equal_the_official_ones(features, kind):
    np.testing.assert_allclose(
        normalize_target(jnp.asarray(features), kind), expected_target(features, kind), atol=2e-6
    )


def test_whitened_tokens_have_mean_zero_and_variance_one(features):
    target = np.asarray(normalize_target(jnp.asarray(features), "whiten"))
    np.testing.assert_allclose(target.mean(axis=-1), 0.0, atol=1e-6)
    np.testing.assert_allclose(target.var(axis=-1), 1.0, atol=1e-4)


@pytest.mark.parametrize("kind", DISTANCES)
def test_distances_equal_the_official_ones(features, kind):
    other = np.roll(features, 1, axis=0) * 0.3
    x, y = torch.from_numpy(features), torch.from_numpy(other)
    expected = {
        "smooth_l1": lambda: 2 * F.smooth_l1_loss(y, x, reduction="none"),
        "l2": lambda: (y - x) ** 2,
        "l1": lambda: F.l1_loss(y, x, reduction="none"),
    }[kind]().numpy()
    np.testing.assert_allclose(
        distance(jnp.asarray(features), jnp.asarray(other), kind), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("d", "expected"), [(0.0, 0.0), (0.5, 0.25), (-0.9, 0.81), (1.0, 1.0), (-3.0, 5.0)])
def test_a_constant_difference_counts_alike_whatever_the_shape(d, expected):
    for shape in ((1, 2, 3), (4, 1, 7)):
        target = jnp.ones(shape, jnp.float32)
        assert float(distance(target + d, target, "smooth_l1").mean()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", (0.25, 0.25, 0.25, 0.25)),
        ("out", (0.0, 0.0, 0.0, 1.0)),
        ("top2", (0.0, 0.0, 0.5, 0.5)),
        ("mid1", (0.0, 1.0, 0.0, 0.0)),
        ("linear_decay", (0.0, 1 / 6, 2 / 6, 3 / 6)),
    ],
)
def test_level_weights(name, expected):
    assert level_weights(name, 4) == pytest.approx(expected)
    assert sum(level_weights(name, 12)) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["top5", "top0", "mid4", "topmost", "all", "linear"])
def test_weights_that_do_not_fit_are_refused(name):
    with pytest.raises(ConfigError, match=f"level_weights is '{name}'.*'top1' to 'top4'"):
        level_weights(name, 4)
