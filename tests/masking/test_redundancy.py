import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.masking.redundancy import all_alive, drop_redundant, places_within, redundancy, take_alive
from mim_jax.masking.token_mask import TokenMask, take_tokens


@pytest.fixture
def tokens():
    return np.random.default_rng(0).normal(size=(3, 12, 8)).astype(np.float32)


def mean_cosines(tokens):
    """With all pairs, as the definition has it."""
    directions = tokens.astype(np.float64) / np.linalg.norm(tokens.astype(np.float64), axis=-1, keepdims=True)
    return (directions @ directions.swapaxes(1, 2)).mean(axis=2)


def test_redundancy_is_the_mean_cosine(tokens):
    np.testing.assert_allclose(redundancy(tokens), mean_cosines(tokens), atol=1e-6)


def test_duplicates_are_the_most_redundant_and_an_orthogonal_token_the_least():
    duplicate, orthogonal = [1.0, 1.0, 0.0], [0.0, 0.0, 5.0]
    tokens = jnp.asarray([[[1.0, 0.0, 0.0], duplicate, orthogonal, [0.0, 3.0, 0.0], duplicate, duplicate]])
    scores = np.asarray(redundancy(tokens))[0]
    assert set(np.argsort(scores)[-3:]) == {1, 4, 5}
    assert np.argmin(scores) == 2
    masks = drop_redundant(tokens, all_alive(1, 6), 3)
    np.testing.assert_array_equal(masks.ids_keep, [[0, 2, 3]])


def test_a_token_of_zeros_is_no_error():
    tokens = jnp.zeros((1, 3, 4)).at[0, 0, 0].set(1.0)
    assert np.isfinite(redundancy(tokens)).all()
    assert np.isfinite(jax.grad(lambda x: redundancy(x).sum())(tokens)).all()


def test_sets_are_nested_and_of_the_sizes_asked_for(tokens):
    alive, before = all_alive(3, 12), set(range(12))
    for count in (12, 9, 4, 1):
        alive = jax.jit(drop_redundant, static_argnums=2)(take_tokens(tokens, alive.ids_keep), alive, count)
        assert alive.num_keep == count and alive.ids_keep.shape == (3, count)
        assert (np.diff(alive.ids_keep, axis=1) > 0).all()
        now = set(np.asarray(alive.ids_keep[0]).tolist())
        assert now <= before
        before = now


def test_the_least_redundant_of_those_alive_stay(tokens):
    alive = TokenMask.from_noise(jax.random.uniform(jax.random.key(1), (3, 12)), 7)
    seen = take_tokens(tokens, alive.ids_keep)
    kept = drop_redundant(seen, alive, 4)
    scores = mean_cosines(np.asarray(seen))
    for image in range(3):
        expected = np.asarray(alive.ids_keep)[image, np.argsort(scores[image])[:4]]
        np.testing.assert_array_equal(kept.ids_keep[image], np.sort(expected))


def test_of_equals_the_first_stay():
    kept = drop_redundant(jnp.ones((2, 5, 3)), all_alive(2, 5), 2)
    np.testing.assert_array_equal(kept.ids_keep, [[0, 1], [0, 1]])


def test_places_within_finds_tokens_in_any_order():
    earlier = jnp.asarray([[5, 2, 9, 0], [1, 3, 4, 8]])
    ids = jnp.asarray([[0, 5], [8, 3]])
    np.testing.assert_array_equal(places_within(ids, earlier), [[3, 0], [3, 1]])


def test_the_prefix_is_always_taken(tokens):
    alive = TokenMask.from_order(jnp.tile(jnp.arange(11)[None, ::-1], (3, 1)), 2)
    np.testing.assert_array_equal(take_alive(tokens, alive, 1), tokens[:, [0, 11, 10]])
    assert take_alive(tokens, None, 1) is tokens
