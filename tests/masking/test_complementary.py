import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.masking.complementary import complementary_views
from mim_jax.masking.token_mask import TokenMask, first_views_first


@pytest.fixture(scope="module")
def mask():
    return TokenMask.from_noise(jax.random.uniform(jax.random.key(0), (3, 12)), 3)


def test_every_token_is_visible_in_one_view(mask):
    views = complementary_views(mask)
    assert views.mask.shape == (12, 12) and views.num_keep == 3
    visible = ~np.asarray(views.mask).reshape(3, 4, 12)
    np.testing.assert_array_equal(visible.sum(axis=1), np.ones((3, 12)))
    np.testing.assert_array_equal(visible.sum(axis=2), np.full((3, 4), 3))
    np.testing.assert_array_equal(views.ids_keep.reshape(3, 12), mask.order)


def test_the_first_view_is_the_mask(mask):
    views = complementary_views(mask)
    np.testing.assert_array_equal(views.mask[::4], mask.mask)
    np.testing.assert_array_equal(views.order[::4], mask.order)


def test_what_is_kept_has_to_be_a_whole_fraction(mask):
    with pytest.raises(ConfigError, match="mask_ratio keeps 5 of 12 tokens"):
        complementary_views(TokenMask.from_order(mask.order, 5))


def test_first_views_come_first():
    rows = jnp.asarray([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]])  # (image, view)
    expected = [[0, 0], [1, 0], [0, 1], [1, 1], [0, 2], [1, 2]]
    np.testing.assert_array_equal(first_views_first(rows, 3), expected)
