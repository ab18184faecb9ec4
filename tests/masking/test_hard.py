import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mim_jax.masking.hard import hard_mask

HARD = jax.jit(hard_mask, static_argnums=3)


@pytest.mark.parametrize("num_hard", [0, 1, 13, 27])
def test_the_hardest_are_hidden_and_the_count_is_exact(num_hard):
    scores = jax.random.normal(jax.random.key(0), (50, 36))
    masks = HARD(jax.random.key(1), scores, jnp.int32(num_hard), 9)
    hidden = np.asarray(masks.mask)
    assert (hidden.sum(axis=1) == 27).all()
    hardest = np.argsort(np.asarray(scores), axis=1)[:, 36 - num_hard :]
    assert np.take_along_axis(hidden, hardest, axis=1).all()
    assert (np.diff(np.asarray(masks.ids_keep), axis=1) > 0).all()  # raster order


def test_the_rest_is_hidden_uniformly():
    """The sheet's 36 patches with 13 forced: each of the 23 others is hidden with probability 14/23."""
    scores = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 36)), (4000, 36))
    hidden = np.asarray(HARD(jax.random.key(2), scores, jnp.int32(13), 9).mask).sum(axis=0)
    order = np.argsort(np.asarray(scores[0]))
    assert (hidden[order[23:]] == 4000).all()
    p_values = [stats.binomtest(int(count), 4000, 14 / 23).pvalue for count in hidden[order[:23]]]
    assert min(p_values) > 1e-4


def test_without_hard_patches_the_scores_do_not_matter():
    one, other = (
        HARD(jax.random.key(3), jax.random.normal(jax.random.key(seed), (8, 36)), jnp.int32(0), 9) for seed in (0, 1)
    )
    np.testing.assert_array_equal(one.mask, other.mask)


def test_equal_scores_still_hide_the_right_number():
    masks = HARD(jax.random.key(4), jnp.zeros((8, 36)), jnp.int32(5), 9)
    assert (np.asarray(masks.mask).sum(axis=1) == 27).all()
