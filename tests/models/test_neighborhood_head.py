import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.models.neighborhood_head import NeighborhoodBlock, NeighborhoodHead

HEAD = NeighborhoodHead(depth=2, heads=2)


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture(scope="module")
def params():
    """Of both modes, normal and of order one after each layer."""
    shapes = jax.eval_shape(HEAD.init, jax.random.key(0), jnp.zeros((1, 3, 8)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) / 3, shapes)


def apply(params, *args, **changes):
    return HEAD.clone(**changes).apply({"params": params}, *args)


def test_both_modes_have_the_same_parameters():
    context = jax.eval_shape(HEAD.init, jax.random.key(0), jnp.zeros((1, 3, 8)))
    target = jax.eval_shape(HEAD.init, jax.random.key(0), jnp.zeros((1, 1, 8)), jnp.zeros((1, 4, 8)))
    assert context == target


def test_official_parameter_counts():
    for width, count in ((768, 14_177_280), (1024, 25_194_496)):
        shapes = jax.eval_shape(
            NeighborhoodHead(2, 12 if width == 768 else 16).init, jax.random.key(0), draw(0, 1, 3, width)
        )
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_the_order_of_neighbors_does_not_matter(params):
    query, neighbors = draw(1, 3, 1, 8), draw(2, 3, 4, 8)
    expected = apply(params, query, neighbors)
    np.testing.assert_allclose(apply(params, query, neighbors[:, ::-1]), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(apply(params, query, neighbors.at[:, 0].set(draw(9, 3, 8))) - expected).max() > 1e-2


def test_neighbors_reach_the_second_block_as_they_are(params):
    """The head is its blocks one by one, each with the same neighbours."""
    x, neighbors = draw(1, 3, 1, 8), draw(2, 3, 4, 8)
    expected = apply(params, x, neighbors)
    for layer in range(2):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["stack"]["blocks"])
        x, _ = NeighborhoodBlock(2, 32).apply({"params": block}, x, neighbors)
    last = nn.LayerNorm(epsilon=1e-6).apply({"params": params["norm"]}, x)
    np.testing.assert_allclose(last, expected, rtol=1e-4, atol=1e-5)


def test_before_its_mlp_a_block_adds_one_vector_to_all_tokens_of_a_context(params):
    block = jax.tree.map(lambda leaf: leaf[0], params["stack"]["blocks"])
    block["mlp"]["fc2"] = jax.tree.map(jnp.zeros_like, block["mlp"]["fc2"])
    x = draw(3, 2, 5, 8)
    added = NeighborhoodBlock(2, 32).apply({"params": block}, x, None)[0] - x
    np.testing.assert_allclose(added, jnp.broadcast_to(added[:, :1], added.shape), atol=1e-5)
    assert np.abs(added[0, 0] - added[1, 0]).max() > 1e-2
    each = NeighborhoodBlock(2, 32, context_attn="self-attn").apply({"params": block}, x, None)[0] - x
    assert np.abs(each - each[:, :1]).max() > 1e-2


def test_a_context_is_one_images_own(params):
    x = draw(3, 2, 5, 8)
    changed = apply(params, x.at[1].set(draw(9, 5, 8)))
    np.testing.assert_allclose(changed[0], apply(params, x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (dict(query_image="other"), "head.query_image is 'other'; choose 'own' or 'official'"),
        (dict(context_attn="none"), "head.context_attn is 'none'; choose 'cross-attn' or 'self-attn'"),
        (dict(target_attn="none"), "head.target_attn is 'none'"),
        (dict(heads=5), "model.width 16 is not divisible by head.heads 5"),
        (dict(depth=0), "head.depth is 0"),
        (dict(neighbors=9), r"head.neighbors is 9; a window of 3 \(head.window\) has 8"),
        (dict(neighbors=0), "head.neighbors is 0"),
        (dict(window=5, neighbors=24), "head.window is 5, but there are only 4x4 patches"),
    ],
)
def test_impossible_settings_are_refused(head, message):
    with pytest.raises(ConfigError, match=message):
        mim_jax.create(
            dict(method="dmt_jepa", image_size=16, model=dict(width=16, depth=1, heads=2, patch_size=4), head=head)
        )
