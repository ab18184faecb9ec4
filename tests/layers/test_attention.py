import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.layers.attention import SelfAttention, dot_product_attention
from mim_jax.layers.rotary import grid_rotation
from mim_jax.training.flops import count_flops


@pytest.fixture(scope="module")
def qkv():
    return tuple(jax.random.normal(jax.random.key(i), (2, 5, 3, 4)) for i in range(3))


def reference(query, key, value, bias, valid):
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    logits = logits + (0 if bias is None else np.asarray(bias))
    if valid is not None:
        logits = np.where(np.asarray(valid)[:, None, None], logits, -1e30)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, value)


@pytest.mark.parametrize("implementation", ["xla", "einsum"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_valid", [False, True])
def test_implementations_equal_the_formula(qkv, implementation, with_bias, with_valid):
    bias = jax.random.normal(jax.random.key(9), (1, 3, 5, 5)) if with_bias else None
    valid = jnp.asarray([[True] * 5, [True, True, False, True, False]]) if with_valid else None
    actual = dot_product_attention(*qkv, bias, valid, implementation)
    np.testing.assert_allclose(actual, reference(*map(np.asarray, qkv), bias, valid), rtol=2e-5, atol=1e-6)


def test_softmax_is_float32_under_bfloat16(qkv):
    half = tuple(x.astype(jnp.bfloat16) * 8 for x in qkv)
    actual = dot_product_attention(*half, implementation="einsum")
    assert actual.dtype == jnp.bfloat16
    exact = reference(*(np.asarray(x.astype(jnp.float32)) for x in half), None, None)
    assert np.abs(np.asarray(actual.astype(jnp.float32)) - exact).max() < 0.15


@pytest.mark.parametrize(
    ("kind", "names"), [("all", {"qkv/bias"}), ("qv", {"query_bias", "value_bias"}), ("none", set())]
)
def test_biases_are_those_asked_for(kind, names):
    params = SelfAttention(heads=2, qkv_bias=kind).init(jax.random.key(0), jnp.zeros((1, 3, 8)))["params"]
    found = {k for k in params if k.endswith("bias")} | ({"qkv/bias"} if "bias" in params["qkv"] else set())
    assert found == names


def test_fused_xavier_limit():
    params = SelfAttention(heads=4).init(jax.random.key(0), jnp.zeros((1, 3, 64)))["params"]
    limit = np.sqrt(6 / (4 * 64))
    assert 0.98 * limit < np.abs(params["qkv"]["kernel"]).max() <= limit
    assert np.abs(params["out"]["kernel"]).max() > limit  # (D, D): sqrt(6 / 2D)


def test_edited_logits_are_the_biased_and_masked_ones_whatever_the_implementation(qkv):
    bias = jax.random.normal(jax.random.key(9), (1, 3, 5, 5))
    more = jax.random.normal(jax.random.key(8), (2, 3, 5, 5))
    valid = jnp.asarray([[True] * 5, [True, True, False, True, False]])
    expected = reference(*map(np.asarray, qkv), bias + more, valid)
    for implementation in ("xla", "einsum", "cudnn"):
        actual = dot_product_attention(*qkv, bias, valid, implementation, edit_logits=lambda logits: logits + more)
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("qkv_bias", ["all", "qv", "none"])
def test_fewer_keys_are_the_first_ones(qkv_bias):
    x = jax.random.normal(jax.random.key(0), (2, 6, 12))
    params = SelfAttention(3, qkv_bias).init(jax.random.key(1), x)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(2), p.shape), params)
    first = jnp.broadcast_to(jnp.arange(6) < 2, (2, 6))
    rotation = grid_rotation((2, 3), 4)
    expected = SelfAttention(3, qkv_bias).apply(params, x, None, first, rotation)
    few = SelfAttention(3, qkv_bias, num_keys=2)
    np.testing.assert_allclose(few.apply(params, x, rotation=rotation), expected, atol=1e-6)
    jax.tree.map(
        np.testing.assert_array_equal,
        *(layer.init(jax.random.key(1), x) for layer in (few, SelfAttention(3, qkv_bias))),
    )


def test_tokens_nobody_attends_to_have_no_keys_and_values():
    x, few = jnp.zeros((2, 6, 12)), SelfAttention(3, num_keys=2)
    params = few.init(jax.random.key(1), x)
    queries_and_out, keys_and_values, products = 6 * 2 * 12 * 12, 2 * 2 * 12 * 12, 2 * 6 * 2 * 12
    assert count_flops(few.apply, params, x) == 2 * 2 * (queries_and_out + keys_and_values + products)
