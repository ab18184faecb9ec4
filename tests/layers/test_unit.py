import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.layers.unit import unit


def test_rows_or_columns_get_length_one_and_keep_their_direction():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_allclose(unit(x), x / np.linalg.norm(x, axis=1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(unit(x, axis=0), x / np.linalg.norm(x, axis=0), rtol=1e-6)
    assert unit(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32


def test_a_zero_vector_stays_and_has_a_finite_gradient():
    zero = jnp.zeros((1, 3))
    assert not unit(zero).any()
    assert np.isfinite(jax.grad(lambda x: unit(x).sum())(zero)).all()
