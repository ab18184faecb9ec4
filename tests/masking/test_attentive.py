"""The draw in proportion to importance: its frequencies, its order, and the hand-made equivalents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import TokenMask
from mim_jax.errors import ConfigError
from mim_jax.masking.attentive import attentive_mask
from mim_jax.masking.token_mask import num_kept

DRAWS = 20_000  # frequencies are good to about 0.01 at three sigmas
KEY = jax.random.key(0)


def frequencies(importance, num_keep):
    """How often each token is visible, and how often it is drawn first."""
    row = jnp.asarray(importance, jnp.float32)[None]
    masks = jax.jit(attentive_mask, static_argnums=2)(KEY, jnp.repeat(row, DRAWS, axis=0), num_keep)
    first = np.bincount(np.asarray(masks.ids_keep)[:, 0], minlength=len(importance)) / DRAWS
    return 1.0 - np.asarray(masks.mask).mean(axis=0), first


def test_the_first_is_drawn_in_proportion_to_importance():
    importance = np.array([1.0, 2.0, 4.0, 9.0])
    _, first = frequencies(importance, 2)
    np.testing.assert_allclose(first, importance / 16, atol=0.012)


def test_further_ones_are_drawn_without_replacement():
    p = np.array([1.0, 2.0, 4.0, 9.0]) / 16
    visible, _ = frequencies(p, 2)
    second = np.array([sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)])
    np.testing.assert_allclose(visible, p + second, atol=0.012)
    assert (np.diff(visible) > 0).all()


def test_of_equal_importance_the_draw_is_uniform():
    visible, first = frequencies(np.full(5, 3e-4), 2)
    np.testing.assert_allclose(visible, 0.4, atol=0.012)
    np.testing.assert_allclose(first, 0.2, atol=0.012)


def test_without_importance_a_token_is_visible_only_if_there_are_no_others():
    visible, _ = frequencies([0.0, 1.0, 1.0, 0.0], 2)
    np.testing.assert_array_equal(visible, [0.0, 1.0, 1.0, 0.0])


def test_exponential_numbers_give_the_draw_by_hand():
    importance = jax.random.uniform(KEY, (3, 7), jnp.float32)
    gumbel = jax.random.gumbel(jax.random.key(1), (3, 7), jnp.float32)
    by_hand = TokenMask.from_noise(jnp.exp(-gumbel) / importance, 4)  # exp(-Gumbel) is Exp(1)
    jax.tree.map(np.testing.assert_array_equal, attentive_mask(jax.random.key(1), importance, 4), by_hand)


def test_all_may_stay_where_a_method_allows_it():
    assert num_kept(16, 0.0, may_keep_all=True) == 16
    assert num_kept(16, 0.7, may_keep_all=True) == 4
    with pytest.raises(ConfigError, match="mask_ratio is 0.0"):
        num_kept(16, 0.0)
