import jax
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.masking.disjoint import DisjointMasks, check_disjoint, random_disjoint_masks
from mim_jax.masking.token_mask import TokenMask


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).random((3, 14 * 14)).astype(np.float32)


def test_views_keep_the_first_and_the_second_49_ranks(noise):
    masks = DisjointMasks.from_noise(noise, 49)
    order = np.argsort(noise, axis=1, kind="stable")
    np.testing.assert_array_equal(masks.view1.ids_keep, order[:, :49])
    np.testing.assert_array_equal(masks.view2.ids_keep, order[:, 49:98])
    first, second = np.asarray(masks.view1.mask), np.asarray(masks.view2.mask)
    assert (first.sum(axis=1) == 147).all() and (second.sum(axis=1) == 147).all()
    assert set(np.unique(first.astype(int) + second)) == {1, 2}


def test_each_view_is_a_consistent_token_mask(noise):
    for mask in jax.tree.leaves(DisjointMasks.from_noise(noise, 49), is_leaf=lambda x: isinstance(x, TokenMask)):
        np.testing.assert_array_equal(np.sort(mask.order, axis=1), np.tile(np.arange(196), (3, 1)))
        hidden = np.take_along_axis(np.asarray(mask.mask), np.asarray(mask.order), axis=1)
        assert not hidden[:, :49].any() and hidden[:, 49:].all()


def test_draws_follow_the_rng():
    draw = jax.jit(lambda key: random_disjoint_masks(key, 2, 16, 4).view2.order)
    np.testing.assert_array_equal(draw(jax.random.key(0)), draw(jax.random.key(0)))
    assert not np.array_equal(draw(jax.random.key(0)), draw(jax.random.key(1)))


def test_two_halves_are_the_most_there_is():
    check_disjoint(16, 8)
    with pytest.raises(ConfigError, match=r"mask_ratio keeps 9 of 16 tokens"):
        check_disjoint(16, 9)
