import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mim_jax.targets.prototypes import cross_entropy, moved_centre, sharpened


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(size=(3, 4, 7)).astype(np.float32) for _ in range(2))
    return student, teacher, rng.normal(size=7).astype(np.float32)


def test_it_is_dinos_loss(arrays):
    student, teacher, centre = map(torch.from_numpy, arrays)
    probabilities = ((teacher - centre) / 0.04).softmax(-1)
    expected = -(probabilities * (student / 0.1).log_softmax(-1)).sum(-1)
    target = sharpened(arrays[1], arrays[2], 0.04)
    np.testing.assert_allclose(target, probabilities, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(cross_entropy(arrays[0], target, 0.1), expected, rtol=1e-5, atol=1e-5)


def test_one_target_for_all_patches(arrays):
    target = sharpened(arrays[1][:, :1], arrays[2], 0.04)
    everywhere = jnp.broadcast_to(target, arrays[0].shape)
    np.testing.assert_allclose(cross_entropy(arrays[0], target, 0.1), cross_entropy(arrays[0], everywhere, 0.1))


def test_equal_logits_leave_the_entropy(arrays):
    target = sharpened(arrays[1], np.zeros(7, np.float32), 0.1)
    entropy = -(target * jnp.log(target)).sum(axis=-1)
    np.testing.assert_allclose(cross_entropy(arrays[1], target, 0.1), entropy, rtol=1e-4, atol=1e-5)


def test_the_centre_follows_the_mean(arrays):
    _, teacher, centre = arrays
    expected = 0.9 * centre + 0.1 * teacher.mean(axis=(0, 1))
    everywhere = np.ones(teacher.shape[:2], bool)
    np.testing.assert_allclose(moved_centre(centre, teacher, everywhere, 0.9), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(moved_centre(centre, teacher, everywhere, 1.0), centre)
    some = np.arange(4) < np.array([1, 2, 4])[:, None]
    expected = 0.9 * centre + 0.1 * teacher[some].mean(axis=0)
    np.testing.assert_allclose(moved_centre(centre, teacher, some, 0.9), expected, rtol=1e-5, atol=1e-6)


def test_nothing_reaches_the_teacher(arrays):
    student, teacher, centre = arrays

    def loss(student, teacher, centre):
        return (
            cross_entropy(student, sharpened(teacher, centre, 0.04), 0.1).sum()
            + moved_centre(jnp.zeros(7), teacher, jnp.ones(teacher.shape[:2], bool), 0.9).sum()
        )

    ours, theirs = jax.grad(loss, argnums=(0, 1))(student, teacher, centre)
    assert np.asarray(ours).any() and not np.asarray(theirs).any()
