import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.layers.attention import dot_product_attention
from mim_jax.layers.homologous import among_largest, homologous_contrast, keep_homologous, keep_top_k


@pytest.fixture(scope="module")
def qkv():
    return tuple(jax.random.normal(jax.random.key(i), (2, 9, 3, 4)) for i in range(3))


def logits_of(query, key):
    return jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])


@pytest.mark.parametrize(("k", "prefix"), [(1, 0), (3, 0), (3, 1)])
def test_each_row_has_exactly_k_weights_beside_the_prefix(qkv, k, prefix):
    logits = logits_of(*qkv[:2])
    weights = np.asarray(jax.nn.softmax(keep_top_k(logits, k, prefix), axis=-1))
    assert ((weights > 0).sum(axis=-1) == k + prefix).all()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    kept = np.sort(np.argsort(np.asarray(logits)[..., prefix:])[..., -k:])
    rows = (weights[..., prefix:] > 0).reshape(-1, weights.shape[-1] - prefix)
    np.testing.assert_array_equal(np.stack([np.flatnonzero(row) for row in rows]), kept.reshape(-1, k))


def test_all_keys_are_ordinary_attention_and_one_key_is_its_value(qkv):
    query, key, value = qkv
    ordinary = dot_product_attention(*qkv, implementation="einsum")
    np.testing.assert_array_equal(dot_product_attention(*qkv, edit_logits=lambda x: keep_top_k(x, 9)), ordinary)
    one = dot_product_attention(*qkv, edit_logits=lambda x: keep_top_k(x, 1))
    best = np.asarray(logits_of(query, key).argmax(axis=-1)).transpose(0, 2, 1)[..., None]
    np.testing.assert_allclose(one, np.take_along_axis(np.asarray(value), best, axis=1), rtol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 7, 49, 196])
def test_the_largest_are_those_of_a_sort(k):
    scales = 10.0 ** jax.random.uniform(jax.random.key(1), (40, 1), minval=-20.0, maxval=20.0)
    values = jax.random.normal(jax.random.key(0), (40, 196)) * scales
    expected = np.zeros((40, 196), bool)
    np.put_along_axis(expected, np.argsort(np.asarray(values), axis=1)[:, -k:], True, axis=1)
    np.testing.assert_array_equal(jax.jit(among_largest, static_argnums=1)(values, k), expected)


def test_equals_of_the_last_one_stay():
    row = jnp.asarray([-1.0, 2.0, 0.0, 2.0, 2.0, -jnp.inf])
    assert among_largest(row, 2).tolist() == [False, True, False, True, True, False]
    assert among_largest(row, 4).tolist() == [False, True, True, True, True, False]
    neighbours = jnp.asarray([1.0, np.nextafter(np.float32(1), np.float32(0)), -1.0])
    assert among_largest(neighbours, 1).tolist() == [True, False, False]


def test_gradients_pass_through_the_kept_logits_alone():
    logits = jnp.asarray([[0.0, 3.0, 1.0, 2.0]])
    gradient = jax.grad(lambda x: (jax.nn.softmax(keep_top_k(x, 2), axis=-1) ** 2).sum())(logits)
    assert (np.asarray(gradient) != 0).tolist() == [[False, True, False, True]]


def test_homologous_keys_are_those_of_the_own_image():
    kept = keep_homologous(jnp.zeros((1, 1, 7, 7)), 3, 1)[0, 0] == 0
    expected = np.ones((7, 7), bool)
    expected[1:4, 4:] = expected[4:, 1:4] = False
    np.testing.assert_array_equal(kept, expected)


def test_contrast_of_identical_homologous_and_orthogonal_other_tokens():
    tokens = jnp.repeat(jnp.eye(4, 6), 5, axis=0)[None] * 3.0
    expected = math.log((5 - 1) + (20 - 5) * math.exp(-1 / 0.25))
    assert float(homologous_contrast(tokens, 4, 0.25)) == pytest.approx(expected, rel=1e-6)


def test_contrast_is_the_sum_written_out():
    tokens = np.asarray(jax.random.normal(jax.random.key(0), (2, 6, 5)))
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    terms = []
    for z in unit:
        for anchor in range(6):
            others = [o for o in range(6) if o != anchor]
            total = sum(math.exp(z[anchor] @ z[o] / 0.5) for o in others)
            positives = [p for p in others if p // 3 == anchor // 3]
            terms.append(-np.mean([math.log(math.exp(z[anchor] @ z[p] / 0.5) / total) for p in positives]))
    assert float(homologous_contrast(jnp.asarray(tokens), 2, 0.5)) == pytest.approx(np.mean(terms), rel=1e-5)


def test_contrast_ignores_scale_and_the_order_of_images_and_tokens():
    tokens = jax.random.normal(jax.random.key(0), (2, 6, 5))
    order = jnp.asarray([5, 3, 4, 1, 0, 2])
    expected = float(homologous_contrast(tokens, 2, 0.25))
    assert float(homologous_contrast(7.0 * tokens, 2, 0.25)) == pytest.approx(expected, rel=1e-5)
    assert float(homologous_contrast(tokens[:, order], 2, 0.25)) == pytest.approx(expected, rel=1e-5)


def test_bfloat16_tokens_are_compared_in_float32():
    tokens = jax.random.normal(jax.random.key(0), (2, 6, 5)).astype(jnp.bfloat16)
    contrast = homologous_contrast(tokens, 2, 0.25)
    assert contrast.dtype == jnp.float32
    assert float(contrast) == pytest.approx(float(homologous_contrast(tokens.astype(jnp.float32), 2, 0.25)), rel=1e-6)
