import jax
import numpy as np
import pytest

from mim_jax.layers.subspace_attention import SubspaceAttention


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (2, 5, 12))


@pytest.fixture(scope="module")
def variables(x):
    params = SubspaceAttention(heads=3).init(jax.random.key(1), x)["params"]
    params["out"]["bias"] = jax.random.normal(jax.random.key(2), (12,))
    return {"params": params}


def test_tokens_attend_to_each_other_in_every_subspace(x, variables):
    params = jax.device_get(variables["params"])
    expected = np.tile(params["out"]["bias"], (2, 5, 1))
    for head in range(3):
        w = np.asarray(x) @ params["subspaces"]["kernel"][:, head]
        weights = np.exp(w @ w.swapaxes(1, 2) / 4**0.5)
        expected += weights / weights.sum(axis=-1, keepdims=True) @ w @ params["out"]["kernel"][head]
    for implementation in ("xla", "einsum"):
        out = SubspaceAttention(heads=3, implementation=implementation).apply(variables, x)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_logits_are_symmetric(x, variables, monkeypatch):
    seen = []

    def record(query, key, value, **options):
        seen.append(np.einsum("bqhd,bkhd->bhqk", query, key))
        return value

    monkeypatch.setattr("mim_jax.layers.subspace_attention.dot_product_attention", record)
    SubspaceAttention(heads=3).apply(variables, x)
    (logits,) = seen
    assert logits.shape == (2, 3, 5, 5)
    np.testing.assert_allclose(logits, logits.swapaxes(2, 3), atol=1e-6)


def test_a_single_head_has_no_output_projection(x):
    attention = SubspaceAttention(heads=1)
    variables = attention.init(jax.random.key(1), x)
    assert set(variables["params"]) == {"subspaces"}
    assert attention.apply(variables, x).shape == x.shape


def test_weights_are_drawn_for_whole_matrices():
    x = jax.numpy.zeros((1, 2, 64))
    params = SubspaceAttention(heads=8).init(jax.random.key(0), x)["params"]
    bound = (6 / (64 + 64)) ** 0.5  # xavier, of a matrix of 64 by 64, not of one head's
    for name in ("subspaces", "out"):
        assert 0.98 * bound < np.abs(params[name]["kernel"]).max() <= bound
