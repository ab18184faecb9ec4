import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.models.ema import copy_tree, cosine_momentum, ema, linear_momentum, move_teacher


def test_ema_weighs_old_and_new():
    old, new = {"a": jnp.array([1.0, 2.0]), "b": jnp.zeros(())}, {"a": jnp.array([5.0, 2.0]), "b": jnp.ones(())}
    moved = ema(old, new, 0.75)
    np.testing.assert_allclose(moved["a"], [2.0, 2.0])
    np.testing.assert_allclose(moved["b"], 0.25)
    jax.tree.map(np.testing.assert_array_equal, ema(old, new, 1.0), old)


def test_the_teacher_follows_the_parts_it_has_and_nothing_else_moves():
    variables = {
        "params": {"encoder": {"w": jnp.ones(3)}, "head": {"w": jnp.full(2, 7.0)}},
        "teacher": {"encoder": {"w": jnp.zeros(3)}},
        "state": {"mean": jnp.ones(1)},
    }
    moved = jax.jit(move_teacher)(variables, 0.9)
    np.testing.assert_allclose(moved["teacher"]["encoder"]["w"], 0.1, rtol=1e-6)
    assert moved["teacher"].keys() == {"encoder"}
    for untouched in ("params", "state"):
        jax.tree.map(np.testing.assert_array_equal, moved[untouched], variables[untouched])


def test_a_copy_has_buffers_of_its_own():
    tree = {"w": jnp.arange(3.0)}
    copied = copy_tree(tree)
    np.testing.assert_array_equal(copied["w"], tree["w"])
    assert copied["w"].unsafe_buffer_pointer() != tree["w"].unsafe_buffer_pointer()


@pytest.mark.parametrize(("schedule", "quarter"), [(linear_momentum, 0.925), (cosine_momentum, 0.91464466)])
def test_schedules_run_from_start_to_end(schedule, quarter):
    at = [float(schedule(jnp.float32(progress), 0.9)) for progress in (0.0, 0.25, 0.5, 1.0)]
    np.testing.assert_allclose(at, [0.9, quarter, 0.95, 1.0], rtol=1e-6)
    np.testing.assert_allclose(float(schedule(jnp.float32(1.0), 0.99, 0.999)), 0.999, rtol=1e-6)
