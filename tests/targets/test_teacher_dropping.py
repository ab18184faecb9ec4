"""From which teachers an image learns, against the official procedure written as a loop."""

import jax
import numpy as np
import pytest

from mim_jax.targets.teacher_dropping import teacher_weights


def make(images=50, teachers=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((images, teachers), np.float32), rng.random((images, teachers), np.float32)


def kept_by_hand(losses, draws, drop):
    """Every teacher but the worst, in order, is dropped where its draw is below `drop`."""
    kept = np.ones_like(losses)
    for image, row in enumerate(losses):
        for teacher in range(len(row)):
            if teacher != row.argmax() and draws[image, teacher] < drop:
                kept[image, teacher] = 0
    return kept


@pytest.mark.parametrize("drop", [0.0, 0.3, 0.5, 1.0])
def test_equals_the_official_loop(drop):
    losses, draws = make()
    weights = teacher_weights(losses, draws, drop)
    kept = kept_by_hand(losses, draws, drop)
    np.testing.assert_array_equal(np.asarray(weights) > 0, kept > 0)
    np.testing.assert_allclose(weights, kept / kept.sum(), rtol=1e-6)
    assert float(weights.sum()) == pytest.approx(1.0, rel=1e-6)
    assert (kept.sum(axis=1) >= 1).all() and 50 <= kept.sum() <= 200


def test_without_dropping_it_is_the_mean_and_with_certain_dropping_that_of_the_worst():
    losses, draws = make()
    assert float((teacher_weights(losses, draws, 0.0) * losses).sum()) == pytest.approx(losses.mean(), rel=1e-5)
    worst = losses.max(axis=1).mean()
    assert float((teacher_weights(losses, draws, 1.0) * losses).sum()) == pytest.approx(worst, rel=1e-5)


def test_images_that_keep_more_teachers_weigh_more():
    losses = np.asarray([[3, 1, 2], [1, 2, 3]], np.float32)
    draws = np.asarray([[0.0, 0.9, 0.9], [0.1, 0.1, 0.9]], np.float32)
    weights = teacher_weights(losses, draws, 0.5)
    np.testing.assert_allclose(weights, [[0.25, 0.25, 0.25], [0.0, 0.0, 0.25]])


def test_of_equal_losses_the_first_is_the_worst():
    losses, draws = np.ones((1, 3), np.float32), np.zeros((1, 3), np.float32)
    np.testing.assert_array_equal(teacher_weights(losses, draws, 0.5), [[1, 0, 0]])


def test_weights_have_no_gradient():
    losses, draws = make()
    gradient = jax.grad(lambda x: (teacher_weights(x, draws, 0.5) * x).sum())(losses)
    np.testing.assert_allclose(gradient, teacher_weights(losses, draws, 0.5))
