"""The blocks that look at another view."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.layers.rotary import grid_rotation
from mim_jax.models.cross_decoder import CrossBlock, CrossDecoder
from mim_jax.models.vit import ViT


def randomised(tree):
    leaves, structure = jax.tree.flatten(tree)
    noise = (jax.random.normal(jax.random.key(7 + i), leaf.shape) for i, leaf in enumerate(leaves))
    return structure.unflatten(0.3 * x for x in noise)


@pytest.fixture(scope="module")
def tokens():
    return jax.random.normal(jax.random.key(0), (2, 9, 16)), jax.random.normal(jax.random.key(1), (2, 9, 16))


def test_a_post_norm_block_gives_normalised_tokens(tokens):
    block = CrossBlock(heads=2, mlp_hidden=24, norm_first=False)
    params = block.init(jax.random.key(2), *tokens)["params"]
    y, _ = block.apply({"params": params}, *tokens)  # the norms' scale is 1 and their bias 0 at first
    np.testing.assert_allclose(y.mean(axis=-1), np.zeros((2, 9)), atol=1e-5)
    np.testing.assert_allclose(y.var(axis=-1), np.ones((2, 9)), rtol=1e-4)


def test_memory_is_a_set_of_tokens_with_places(tokens):
    x, memory = tokens
    block, rotation = CrossBlock(heads=2, mlp_hidden=24, norm_first=True), grid_rotation((3, 3), 8)
    params = randomised(block.init(jax.random.key(2), x, memory)["params"])
    order = jax.random.permutation(jax.random.key(3), 9)
    moved = jax.tree.map(lambda leaf: leaf[:, order], rotation)
    apply = jax.jit(lambda memory, places: block.apply({"params": params}, x, memory, rotation, places)[0])
    np.testing.assert_allclose(apply(memory[:, order], moved), apply(memory, rotation), atol=2e-5)
    assert np.abs(apply(memory[:, order], rotation) - apply(memory, rotation)).max() > 1e-2


@pytest.mark.parametrize("norm_first", [True, False])
def test_dropout_is_random_only_in_training(tokens, norm_first):
    decoder = CrossDecoder((3, 3), 12, 16, 2, 2, 24, norm_first=norm_first, dropout=0.3)
    params = decoder.init(jax.random.key(2), *tokens, None)["params"]

    @jax.jit
    def apply(key):
        return decoder.apply({"params": params}, *tokens, None, deterministic=False, rngs={"dropout": key})

    one, again, other = (apply(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    sure = decoder.apply({"params": params}, *tokens, None)
    plain = decoder.clone(dropout=0.0).apply({"params": params}, *tokens, None, deterministic=False)
    np.testing.assert_array_equal(sure, plain)


def test_a_rotary_encoder_knows_the_places_of_kept_patches():
    encoder = ViT((12, 12), (4, 4), 16, 2, 2, class_token=False, position="rope", pool="mean")
    images = jax.random.normal(jax.random.key(0), (2, 12, 12, 3))
    params = randomised(encoder.init(jax.random.key(1), images)["params"])
    whole = encoder.apply({"params": params}, images)
    order = jnp.asarray([[3, 0, 8, 1, 7, 2, 5, 4, 6], [8, 7, 6, 5, 4, 3, 2, 1, 0]])
    shuffled = encoder.apply({"params": params}, images, ids_keep=order)
    np.testing.assert_allclose(shuffled, jnp.take_along_axis(whole, order[:, :, None], axis=1), atol=3e-5)
    # Displacements alone count: patches 0, 1, 3 and 4, 5, 7 form the same figure.
    patch = jax.random.normal(jax.random.key(2), (1, 4, 4, 3))
    tiled = jnp.tile(patch, (1, 3, 3, 1))
    figures = [encoder.apply({"params": params}, tiled, ids_keep=jnp.asarray([ids])) for ids in ([0, 1, 3], [4, 5, 7])]
    np.testing.assert_allclose(*figures, atol=3e-5)
