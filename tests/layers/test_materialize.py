import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.layers.materialize import materialize


@pytest.mark.parametrize("first", [1.5, np.inf, -np.inf, np.nan])
def test_values_pass_unchanged(first):
    x = jnp.array([[first, 2.0], [3.0, np.inf]], jnp.float32)
    np.testing.assert_array_equal(jax.jit(materialize)(x), x)


def test_gradients_pass_unchanged():
    x = jnp.arange(6.0, dtype=jnp.float32).reshape(2, 3)
    gradient = jax.jit(jax.grad(lambda x: jnp.square(materialize(x)).sum()))(x)
    np.testing.assert_array_equal(gradient, 2 * x)


@pytest.mark.parametrize("function", [materialize, jax.grad(lambda x: jnp.sin(materialize(jnp.sin(x))).sum())])
def test_the_compiler_does_not_see_through_it(function):
    """Should XLA learn to remove the loop, its fusions have to be looked at again."""
    x = jnp.ones((8, 16), jnp.float32)
    assert " while(" in jax.jit(function).lower(x).compile().as_text()
