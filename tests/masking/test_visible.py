import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.masking.visible import Visible

IDS = jnp.asarray([[4, 0, 2], [1, 5, 3]], jnp.int32)


@pytest.fixture(scope="module")
def visible():
    return Visible.from_ids(IDS, 6)


def test_slots_invert_the_ids(visible):
    np.testing.assert_array_equal(visible.slots, [[1, 3, 2, 3, 0, 3], [3, 0, 3, 2, 3, 1]])


def test_placing_fills_the_rest_with_zeros(visible):
    rows = jnp.arange(1.0, 13.0).reshape(2, 3, 2)
    placed = np.asarray(visible.place(rows))
    np.testing.assert_array_equal(placed[0], [[3, 4], [0, 0], [5, 6], [0, 0], [1, 2], [0, 0]])
    np.testing.assert_array_equal(visible.take(placed), rows)


def test_gradients_are_those_of_the_plain_gather_and_of_a_scatter(visible):
    tokens = jax.random.normal(jax.random.key(0), (2, 6, 2))
    rows, weight = tokens[:, :3], jax.random.normal(jax.random.key(1), (2, 6, 2))
    batch = jnp.arange(2)[:, None]

    def plain_place(rows):
        return jnp.zeros((2, 6, 2)).at[batch, IDS].set(rows)

    taken = jax.grad(lambda x: (visible.take(x) * weight[:, :3]).sum())(tokens)
    np.testing.assert_array_equal(taken, jax.grad(lambda x: (x[batch, IDS] * weight[:, :3]).sum())(tokens))
    placed = jax.grad(lambda x: (visible.place(x) * weight).sum())(rows)
    np.testing.assert_array_equal(placed, jax.grad(lambda x: (plain_place(x) * weight).sum())(rows))
