import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim_jax import TokenMask
from mim_jax.errors import ConfigError
from mim_jax.masking.token_mask import num_kept


@pytest.mark.parametrize(("tokens", "ratio", "keep"), [(196, 0.75, 49), (256, 0.75, 64), (196, 0.6, 78), (100, 0.9, 9)])
def test_num_kept_truncates_as_python_floats_do(tokens, ratio, keep):
    assert num_kept(tokens, ratio) == keep


@pytest.mark.parametrize(("tokens", "ratio", "keep"), [(49, 0.6, 20), (10, 0.75, 2), (14, 0.75, 4)])
def test_num_kept_may_round_half_to_even_as_spark_does(tokens, ratio, keep):
    assert num_kept(tokens, ratio, rounding=round) == keep


@pytest.mark.parametrize(("tokens", "ratio"), [(196, 0.0), (196, 1.0), (196, -0.1), (4, 0.9)])
def test_ratios_that_hide_nothing_or_everything_are_refused(tokens, ratio):
    with pytest.raises(ConfigError, match="mask_ratio"):
        num_kept(tokens, ratio)


def test_from_noise_keeps_the_smallest_in_noise_order():
    noise = jnp.asarray([[0.9, 0.1, 0.5, 0.3], [0.2, 0.2, 0.2, 0.2]])
    mask = TokenMask.from_noise(noise, 2)
    np.testing.assert_array_equal(mask.ids_keep, [[1, 3], [0, 1]])  # ties go to the lower index
    np.testing.assert_array_equal(mask.mask, [[True, False, True, False], [False, False, True, True]])


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 5), st.data())
def test_invariants_hold_for_any_size(num_tokens, batch, data):
    num_keep = data.draw(st.integers(1, num_tokens - 1))
    noise = jax.random.uniform(jax.random.key(data.draw(st.integers(0, 9))), (batch, num_tokens))
    mask = TokenMask.from_noise(noise, num_keep)
    assert (np.asarray(mask.mask).sum(axis=1) == num_tokens - num_keep).all()
    np.testing.assert_array_equal(np.sort(mask.order, axis=1), np.tile(np.arange(num_tokens), (batch, 1)))
    identity = np.take_along_axis(np.asarray(mask.order), np.asarray(mask.ids_restore), axis=1)
    np.testing.assert_array_equal(identity, np.tile(np.arange(num_tokens), (batch, 1)))
    assert not np.take_along_axis(np.asarray(mask.mask), np.asarray(mask.ids_keep), axis=1).any()
    assert np.take_along_axis(np.asarray(mask.mask), np.asarray(mask.ids_hidden), axis=1).all()


def test_from_bool_keeps_raster_order_and_counts():
    mask = TokenMask.from_bool(np.array([[1, 0, 1, 0], [0, 1, 1, 0]]))
    assert mask.num_keep == 2
    np.testing.assert_array_equal(mask.ids_keep, [[1, 3], [0, 3]])
    with pytest.raises(ValueError, match="num_keep=3"):
        TokenMask.from_bool(np.array([[1, 0, 1, 0]]), 3)


def test_from_bool_under_jit_needs_the_count():
    hide = jnp.asarray([[True, False, False]])
    with pytest.raises(ValueError, match="num_keep"):
        jax.jit(TokenMask.from_bool)(hide)
    jitted = jax.jit(lambda m: TokenMask.from_bool(m, 2))(hide)
    np.testing.assert_array_equal(jitted.ids_keep, [[1, 2]])


def test_rows_with_different_counts_cannot_be_gathered():
    mask = TokenMask.from_bool(np.array([[1, 0, 0], [1, 1, 0]]))
    assert mask.num_keep is None
    with pytest.raises(ValueError, match="different numbers"):
        _ = mask.ids_keep


def test_restore_undoes_keep_and_fills_with_the_mask_token():
    tokens = jax.random.normal(jax.random.key(0), (3, 6, 4))
    mask = TokenMask.from_noise(jax.random.uniform(jax.random.key(1), (3, 6)), 2)
    token = jnp.full((4,), 7.0)
    restored = mask.restore(mask.keep(tokens), token)
    expected = np.where(np.asarray(mask.mask)[..., None], 7.0, tokens)
    np.testing.assert_array_equal(restored, expected)
