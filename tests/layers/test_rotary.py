import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.layers.rotary import check_head_dim, grid_positions, grid_rotation, make_rotation, rotate


@pytest.fixture(scope="module")
def tokens():
    return jax.random.normal(jax.random.key(0), (2, 12, 3, 16))


def reference(x: np.ndarray, row: int, column: int) -> np.ndarray:
    """One head `[16]`, pair by pair."""
    out = np.array(x, np.float64)
    for half, position in enumerate((row, column)):
        for k in range(4):
            angle = position * 100.0 ** (-2 * k / 8)
            a, b = 8 * half + k, 8 * half + k + 4
            out[a] = x[a] * np.cos(angle) - x[b] * np.sin(angle)
            out[b] = x[b] * np.cos(angle) + x[a] * np.sin(angle)
    return out


def test_it_equals_the_formula(tokens):
    turned = rotate(tokens, grid_rotation((3, 4), 16))
    x = np.asarray(tokens)
    for index, (row, column) in enumerate(grid_positions((3, 4)).tolist()):
        assert (row, column) == divmod(index, 4)
        np.testing.assert_allclose(turned[1, index, 2], reference(x[1, index, 2], row, column), atol=1e-6)


def test_norms_stay_and_the_origin_is_not_turned(tokens):
    turned = rotate(tokens, grid_rotation((3, 4), 16))
    norms = [np.linalg.norm(np.asarray(x), axis=-1) for x in (turned, tokens)]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    np.testing.assert_array_equal(turned[:, 0], tokens[:, 0])


def test_each_half_knows_one_axis(tokens):
    turned = rotate(tokens[:, :1], make_rotation(jnp.asarray([[[2, 5]]]), 16))
    for positions, same in (([[[2, 9]]], slice(0, 8)), ([[[7, 5]]], slice(8, 16))):
        other = rotate(tokens[:, :1], make_rotation(jnp.asarray(positions), 16))
        np.testing.assert_array_equal(turned[..., same], other[..., same])
        assert not np.array_equal(turned, other)


def test_scores_depend_on_displacements_alone(tokens):
    positions = jnp.asarray(grid_positions((3, 4)))[None]

    def scores(shift):
        rotation = make_rotation(positions + jnp.asarray(shift)[None, None], 16)
        return jnp.einsum("bqhd,bkhd->bhqk", rotate(tokens, rotation), rotate(jnp.flip(tokens, 1), rotation))

    np.testing.assert_allclose(scores((0, 0)), scores((5, 11)), atol=2e-5)


def test_chosen_patches_keep_their_places_and_a_prefix_has_none(tokens):
    ids = jnp.asarray([[7, 2, 11], [0, 1, 5]])
    whole = rotate(tokens, grid_rotation((3, 4), 16))
    chosen = jnp.take_along_axis(tokens, ids[:, :, None, None], axis=1)
    with_class = jnp.concatenate([tokens[:, :1], chosen], axis=1)
    turned = rotate(with_class, grid_rotation((3, 4), 16, ids, prefix=1))
    np.testing.assert_array_equal(turned[:, 0], tokens[:, 0])
    expected = jnp.take_along_axis(whole, ids[:, :, None, None], axis=1)
    np.testing.assert_allclose(turned[:, 1:], expected, atol=1e-6)


def test_heads_must_have_room_for_two_axes():
    check_head_dim(64, 4, "model")
    with pytest.raises(ConfigError, match="model.width 24 over model.heads 4 gives heads of 6 channels"):
        check_head_dim(24, 4, "model")
