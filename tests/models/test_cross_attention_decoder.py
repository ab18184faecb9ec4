import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.layers.compute import Compute
from mim_jax.models.cross_attention_decoder import CrossAttentionDecoder

GRID, DEPTH, WIDTH, MEMORY = (4, 4), 2, 16, 12
SIZES = dict(grid=GRID, output_dim=5, width=WIDTH, depth=DEPTH, heads=2)
DECODER = CrossAttentionDecoder(**SIZES)


@pytest.fixture(scope="module")
def latent():
    return jax.random.normal(jax.random.key(0), (3, 6, MEMORY))


@pytest.fixture(scope="module")
def ids():
    return jnp.asarray([[1, 4, 9, 15], [0, 2, 3, 8], [5, 6, 7, 10]], jnp.int32)


@pytest.fixture(scope="module")
def variables(latent, ids):
    return jax.jit(DECODER.init)(jax.random.key(1), latent, ids)


apply = jax.jit(DECODER.apply)


def test_a_query_does_not_see_the_others(variables, latent, ids):
    whole = apply(variables, latent, ids)
    assert whole.shape == (3, 4, 5) and whole.dtype == jnp.float32
    without = apply(variables, latent, ids[:, jnp.asarray([0, 2, 3])])
    np.testing.assert_allclose(without, np.delete(whole, 1, axis=1), atol=1e-6)
    reordered = apply(variables, latent, ids[:, ::-1])
    np.testing.assert_allclose(reordered, whole[:, ::-1], atol=1e-6)


def test_every_query_sees_all_of_the_memory_whatever_its_order(variables, latent, ids):
    whole = apply(variables, latent, ids)
    np.testing.assert_allclose(apply(variables, latent[:, ::-1], ids), whole, atol=1e-5)
    for token in range(latent.shape[1]):
        changed = apply(variables, latent.at[:, token].add(1.0), ids)
        assert np.abs(changed - whole).max(axis=-1).min() > 1e-5


def test_patches_differ_by_their_position_alone(variables, latent):
    same = apply(variables, latent, jnp.full((3, 2), 7, jnp.int32))
    np.testing.assert_allclose(same[:, 0], same[:, 1], atol=1e-6)
    other = apply(variables, latent, jnp.asarray([[7, 8]] * 3, jnp.int32))
    assert np.abs(other[:, 0] - other[:, 1]).max() > 1e-3


def test_keys_and_values_start_like_one_fused_projection(variables):
    attention = variables["params"]["stack"]["blocks"]["cross_attention"]
    limits = {"query": 2 * WIDTH, "key": MEMORY + 2 * WIDTH, "value": MEMORY + 2 * WIDTH, "out": 2 * WIDTH}
    for name, fans in limits.items():
        kernel = np.abs(np.asarray(attention[name]["kernel"]))
        assert kernel.shape[0] == DEPTH
        assert 0.95 * math.sqrt(6 / fans) < kernel.max() <= math.sqrt(6 / fans)


def test_looped_and_rematerialised_blocks_give_the_same(variables, latent, ids):
    expected = apply(variables, latent, ids)
    for compute in (Compute(scan=False), Compute(scan=True, remat="full")):
        other = CrossAttentionDecoder(**SIZES, compute=compute)
        np.testing.assert_allclose(jax.jit(other.apply)(variables, latent, ids), expected, atol=1e-6)
