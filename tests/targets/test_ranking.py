import math

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.targets.ranking import absolute_loss, relative_loss


def official(prediction, target):
    """The sum over ordered pairs of hpm.md, step 6, pair by pair."""
    total, count = 0.0, 0
    for q, t in zip(prediction, target, strict=True):
        for i in range(len(q)):
            for j in range(len(q)):
                probability = 1.0 / (1.0 + math.exp(-(q[j] - q[i])))
                if t[j] > t[i]:
                    total, count = total - math.log(probability + 1e-6), count + 1
                elif t[j] < t[i]:
                    total, count = total - math.log(1.0 - probability + 1e-6), count + 1
    return total / count


def test_the_hand_case():
    prediction, target = [[0.3, -0.2, 1.0, 0.5]], [[2.0, 1.0, 1.0, 3.0]]
    loss = relative_loss(jnp.array(prediction), jnp.array(target))
    # (i, j) with t_j > t_i: (0,3), (1,0), (1,3), (2,0), (2,3), whose d are 0.2, 0.5, 0.7, -0.7, -0.5.
    by_hand = np.mean([math.log1p(math.exp(-d)) for d in (0.2, 0.5, 0.7, -0.7, -0.5)])
    np.testing.assert_allclose(loss, by_hand, atol=3e-6)
    np.testing.assert_allclose(loss, official(prediction, target), rtol=1e-6)


def test_relative_loss_is_the_official_sum_with_ties_and_rows_of_unequal_weight():
    rng = np.random.default_rng(0)
    prediction = (3.0 * rng.normal(size=(4, 7))).astype(np.float32)
    target = rng.integers(0, 4, size=(4, 7)).astype(np.float32)
    target[0] = 1.0  # nothing but ties
    loss = relative_loss(jnp.asarray(prediction), jnp.asarray(target))
    np.testing.assert_allclose(loss, official(prediction.tolist(), target.tolist()), rtol=1e-5)


def test_only_differences_and_the_order_matter():
    prediction, target = jax.random.normal(jax.random.key(0), (3, 6)), jax.random.uniform(jax.random.key(1), (3, 6))
    loss = relative_loss(prediction, target)
    np.testing.assert_allclose(relative_loss(prediction + 2.0, target), loss, rtol=1e-5)
    np.testing.assert_allclose(relative_loss(prediction, jnp.exp(3.0 * target)), loss, rtol=1e-6)
    np.testing.assert_allclose(relative_loss(jnp.ones((3, 6)), target), math.log(2.0), atol=3e-6)
    assert float(relative_loss(prediction, jnp.ones((3, 6)))) == 0.0


def test_a_wrong_order_saturates():
    loss = relative_loss(jnp.array([[40.0, -40.0]]), jnp.array([[0.0, 1.0]]))
    np.testing.assert_allclose(loss, -math.log(1e-6), rtol=1e-6)


def test_the_target_is_a_constant():
    prediction, target = jax.random.normal(jax.random.key(0), (3, 6)), jax.random.uniform(jax.random.key(1), (3, 6))
    for loss in (relative_loss, absolute_loss):
        to_prediction, to_target = jax.grad(loss, argnums=(0, 1))(prediction, target)
        assert np.abs(to_prediction).max() > 0 and not np.abs(to_target).max() > 0


def test_absolute_loss_standardises_the_target_alone():
    target = jnp.array([[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(absolute_loss(jnp.array([[-1.0, 0.0, 1.0]]), target), 0.0, atol=1e-6)
    np.testing.assert_allclose(absolute_loss(jnp.array([[-3.0, 0.0, 3.0]]), 10.0 * target), 8.0 / 3.0, rtol=1e-5)
