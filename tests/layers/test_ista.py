import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.layers.ista import ISTA


@pytest.fixture(scope="module")
def z():
    return jax.random.normal(jax.random.key(0), (2, 3, 8))


def apply(z, kernel, **options):
    return ISTA(**options).apply({"params": {"kernel": kernel}}, z)


def test_is_a_proximal_gradient_step_from_the_tokens_themselves(z):
    kernel = jax.random.normal(jax.random.key(1), (8, 8))

    def lasso(code):
        return jnp.square(z - code @ kernel).sum() / 2 + 0.7 * code.sum()

    expected = np.maximum(z - 0.2 * jax.grad(lasso)(z), 0.0)
    np.testing.assert_allclose(apply(z, kernel, step_size=0.2, threshold=0.7), expected, rtol=1e-5, atol=1e-5)


def test_without_a_step_it_only_rectifies(z):
    kernel = jax.random.normal(jax.random.key(1), (8, 8))
    np.testing.assert_array_equal(apply(z, kernel, step_size=0.0), np.maximum(z, 0.0))


def test_a_perfect_dictionary_without_threshold_only_rectifies(z):
    np.testing.assert_array_equal(apply(z, jnp.eye(8), threshold=0.0), np.maximum(z, 0.0))


def test_the_dictionary_is_drawn_as_kaiming_uniform():
    kernel = ISTA().init(jax.random.key(0), jnp.zeros((1, 96)))["params"]["kernel"]
    bound = (6 / 96) ** 0.5
    assert 0.98 * bound < np.abs(kernel).max() <= bound
    assert np.std(kernel) == pytest.approx(bound / 3**0.5, rel=0.03)
