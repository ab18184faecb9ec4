import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.masking.corruption import CorruptedViews, Corruption, corrupt, other_images, two_views
from mim_jax.masking.token_mask import TokenMask


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(0), (5, 8, 8, 3), minval=1.0, maxval=2.0)


@pytest.fixture(scope="module")
def corruption():
    noise = np.random.default_rng(0).random((5, 4))
    return Corruption(TokenMask.from_noise(noise, 1), jnp.arange(5, dtype=jnp.uint32) * 7)


def pixels(corruption):
    return np.asarray(corruption.hidden.mask).reshape(-1, 2, 2).repeat(4, 1).repeat(4, 2)


@pytest.mark.parametrize("replacement", ["zeros", "noise", "other_image"])
def test_only_hidden_patches_are_replaced(images, corruption, replacement):
    result = np.asarray(corrupt(images, corruption, (4, 4), replacement))
    hidden = pixels(corruption)
    np.testing.assert_array_equal(result[~hidden], np.asarray(images)[~hidden])
    if replacement == "zeros":
        assert not result[hidden].any()
    elif replacement == "noise":
        assert abs(result[hidden].mean()) < 0.1 and abs(result[hidden].std() - 1.0) < 0.1
        assert len(np.unique(result[hidden])) == result[hidden].size
    else:
        donors = np.asarray(images)[other_images(corruption.seed)]
        np.testing.assert_array_equal(result[hidden], donors[hidden])
        assert (result != np.asarray(images)).any(axis=-1)[hidden].all()


def test_noise_belongs_to_the_image_not_to_its_place(images, corruption):
    whole = corrupt(images, corruption, (4, 4), "noise")
    part = corrupt(images[2:4], jax.tree.map(lambda x: x[2:4], corruption), (4, 4), "noise")
    np.testing.assert_array_equal(part, whole[2:4])


@pytest.mark.parametrize("batch", [2, 3, 16])
def test_the_other_image_is_another_one_and_any_of_them(batch):
    draws = jax.random.bits(jax.random.key(0), (400, batch), jnp.uint32)
    others = np.asarray(jax.vmap(other_images)(draws))
    steps = (others - np.arange(batch)) % batch
    assert set(np.unique(steps)) == set(range(1, batch))
    np.testing.assert_allclose(np.bincount(steps.ravel())[1:] / steps.size, 1 / (batch - 1), rtol=0.3)
    # A shifted batch has shifted partners.
    np.testing.assert_array_equal(other_images(jnp.roll(draws[0], 1)), (np.roll(others[0], 1) + 1) % batch)


def test_masks_given_plainly(corruption):
    mask = corruption.hidden
    for given in (mask, (mask, mask), [mask, Corruption.of(mask)], CorruptedViews(mask, mask)):
        both = two_views(given)
        for view in both:
            assert isinstance(view, Corruption) and view.hidden is mask and not view.seed.any()
    assert two_views(corruption).view2 is corruption
