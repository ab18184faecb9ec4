import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.layers.tubes import tubify
from mim_jax.targets.tube_pixels import tube_statistics, tube_target

TUBE = (2, 4, 4)


@pytest.fixture
def clips():
    return 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 3), jnp.float32)


def test_raw_targets_are_the_pixels(clips):
    np.testing.assert_array_equal(tube_target(clips, TUBE, False), tubify(clips, TUBE))


def test_normalised_targets_have_mean_zero_and_unbiased_deviation_one(clips):
    target = np.asarray(tube_target(clips, TUBE, True), np.float64)
    n = 2 * 4 * 4 * 3
    assert target.shape == (2, 8, n)
    np.testing.assert_allclose(target.mean(-1), 0.0, atol=1e-5)
    np.testing.assert_allclose(np.square(target).mean(-1), (n - 1) / n, rtol=1e-4)


def test_a_flat_tube_has_the_epsilon_alone():
    flat = jnp.full((1, 2, 4, 4, 3), 0.5, jnp.float32)
    mean, deviation = tube_statistics(tubify(flat, TUBE))
    np.testing.assert_allclose(mean, 0.5)
    np.testing.assert_allclose(deviation, 1e-6, rtol=1e-5)
    np.testing.assert_array_equal(tube_target(flat, TUBE, True), 0.0)
