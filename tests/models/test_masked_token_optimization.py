import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.models.masked_token_optimization import (
    input_similarity,
    most_committed,
    row_entropy,
    visible_to_hidden_mass,
)

HIDDEN = jnp.asarray([[True, False, True, False, False, True], [False, False, False, True, True, True]])


@pytest.fixture(scope="module")
def tokens():
    return jax.random.normal(jax.random.key(0), (2, 6, 8))


def test_entropy_is_the_formula_over_visible_tokens(tokens):
    ours = np.asarray(row_entropy(tokens, HIDDEN, 0.5))
    for image, hidden, row in zip(np.asarray(tokens), np.asarray(HIDDEN), ours, strict=True):
        unit = image / np.linalg.norm(image, axis=-1, keepdims=True)
        for token in np.flatnonzero(hidden):
            share = np.exp(unit[~hidden] @ unit[token] / 0.5)
            share /= share.sum()
            assert row[token] == pytest.approx(-(share * np.log(share)).sum() / np.log(3), rel=1e-5)
    assert ((ours >= 0) & (ours <= 1 + 1e-6)).all()


def test_entropy_is_one_for_the_undecided_and_zero_for_the_decided():
    basis = jnp.eye(6)
    undecided = basis.at[0].set(basis[1] + basis[3] + basis[4])[None]
    decided = basis.at[0].set(2.0 * basis[3])[None]
    assert float(row_entropy(undecided, HIDDEN[:1], 0.1)[0, 0]) == pytest.approx(1.0, rel=1e-6)
    assert float(row_entropy(decided, HIDDEN[:1], 0.02)[0, 0]) < 1e-6


def test_entropy_ignores_scale_and_hidden_columns(tokens):
    expected = row_entropy(tokens, HIDDEN, 0.1)
    np.testing.assert_allclose(row_entropy(9.0 * tokens, HIDDEN, 0.1), expected, rtol=1e-4, atol=1e-6)
    others = tokens.at[0, 2].set(tokens[0, 3])
    np.testing.assert_allclose(row_entropy(others, HIDDEN, 0.1)[0, 0], expected[0, 0], rtol=1e-6)


def test_entropy_of_bfloat16_and_of_zero_tokens_is_float32_and_finite(tokens):
    entropy = row_entropy(tokens.astype(jnp.bfloat16), HIDDEN, 0.1)
    assert entropy.dtype == jnp.float32
    gradient = jax.grad(lambda x: row_entropy(x, HIDDEN, 0.1).sum())(tokens.at[0, 0].set(0.0))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("share", "expected"), [(0.0, []), (1 / 3, [5]), (2 / 3, [0, 5]), (1.0, [0, 2, 5])])
def test_the_most_committed_have_the_least_entropy(share, expected):
    entropy = jnp.asarray([[0.5, 0.0, 0.9, 0.0, 0.0, 0.1]])
    chosen = most_committed(entropy, HIDDEN[:1], jnp.float32(share))
    assert np.flatnonzero(chosen[0]).tolist() == expected


def test_mass_is_what_visible_queries_give_to_hidden_keys():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 7, 7))
    weights = np.asarray(jax.nn.softmax(logits, axis=-1))
    hidden = np.pad(np.asarray(HIDDEN), ((0, 0), (1, 0)))
    rows = [w[:, ~h][:, :, h].sum(axis=-1).mean(axis=0) for w, h in zip(weights, hidden, strict=True)]
    expected = np.concatenate(rows).mean()
    assert float(visible_to_hidden_mass(logits, HIDDEN, 1)) == pytest.approx(expected, rel=1e-5)


def test_mass_is_zero_without_attention_and_rises_with_a_bias():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 6, 6))
    keys = HIDDEN[:, None, None].astype(jnp.float32)
    masses = [float(visible_to_hidden_mass(logits + bias * keys, HIDDEN, 0)) for bias in (-1e9, -1.0, 0.0, 1.0)]
    assert masses[0] == 0.0
    assert masses == sorted(set(masses))


def test_input_similarity_lies_between_orthogonal_and_equal():
    token = jnp.asarray([1.0, 0.0, 0.0])
    orthogonal = jnp.broadcast_to(jnp.asarray([0.0, 2.0, -1.0]), (2, 6, 3))
    equal = jnp.broadcast_to(3.0 * token, (2, 6, 3))
    assert float(input_similarity(token, orthogonal, ~HIDDEN, 0.0)) == 0.0
    assert float(input_similarity(token, equal, ~HIDDEN, 0.0)) == pytest.approx(1.0)
    assert float(input_similarity(token, -equal, ~HIDDEN, 0.25)) == pytest.approx(0.75)
    mixed = jnp.where(HIDDEN[..., None], equal, orthogonal)
    assert float(input_similarity(token, mixed, ~HIDDEN, 0.0)) == 0.0


def test_input_similarity_moves_the_mask_token_alone(tokens):
    by_token, by_embedding = jax.grad(input_similarity, argnums=(0, 1))(tokens[0, 0], tokens, ~HIDDEN, 0.0)
    assert np.abs(by_token).max() > 0 and not np.abs(by_embedding).max() > 0
