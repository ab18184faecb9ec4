import jax
import numpy as np
import pytest

import mim_jax
from mim_jax.evaluation.coding_rate import (
    coding_rate,
    layer_statistics,
    layer_tokens,
    nonzero_share,
    subspace_coding_rate,
)

TINY = dict(image_size=16, model=dict(width=16, depth=2, heads=2, patch_size=4))


def logdet_rate(tokens, square):
    """The formula in NumPy, on the matrix of all tokens with all others."""
    z = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    number, width = z.shape
    return np.linalg.slogdet(np.eye(number) + width / (number * square) * z @ z.T)[1] / 2


@pytest.mark.parametrize("shape", [(7, 20), (20, 7)])
def test_equals_the_formula(shape):
    tokens = np.random.default_rng(0).normal(size=(3, *shape)) * 5
    rates = coding_rate(tokens, epsilon=0.1)
    np.testing.assert_allclose(rates, [logdet_rate(t, 0.01) for t in tokens], rtol=1e-5)


def test_closed_forms():
    same = np.tile([3.0, 4.0, 0.0, 0.0], (8, 1))
    assert float(coding_rate(same, 0.5)) == pytest.approx(np.log(1 + 4 / 0.25) / 2, rel=1e-5)
    apart = np.eye(4) * 7.0
    assert float(coding_rate(apart, 0.5)) == pytest.approx(4 * np.log(1 + 1 / 0.25) / 2, rel=1e-5)
    assert float(coding_rate(np.zeros((5, 3)))) == 0.0


def test_subspaces_are_added_up():
    coordinates = np.random.default_rng(1).normal(size=(2, 9, 3, 4))
    rates = subspace_coding_rate(coordinates, epsilon=0.1)
    expected = [sum(logdet_rate(one[:, head], 0.01) for head in range(3)) for one in coordinates]
    np.testing.assert_allclose(rates, expected, rtol=1e-4)


def test_share_of_entries_that_are_not_zero():
    tokens = np.asarray([[[0.0, 1.0], [0.0, -2.0]], [[0.0, 0.0], [1e-20, 0.0]]])
    np.testing.assert_array_equal(nonzero_share(tokens), [0.5, 0.25])


@pytest.mark.parametrize(("method", "scan"), [("crate_mae", True), ("crate_mae", False), ("mae", True)])
def test_statistics_are_of_every_blocks_own_input_and_output(method, scan):
    objective = mim_jax.create({"method": method, **TINY, "compute": {"scan": scan}})
    params = jax.jit(lambda: objective.init(jax.random.key(0), objective.batch_spec()))()["params"]["encoder"]
    images = jax.random.normal(jax.random.key(1), (3, 16, 16, 3))
    tokens = jax.device_get(jax.jit(lambda p: layer_tokens(objective.encoder, p, images))(params))
    found = layer_statistics(tokens)
    assert {name: value.shape for name, value in found.items()} == dict.fromkeys(
        ("compression", "rate", "nonzero"), (2, 3)
    )

    _, layers = jax.jit(lambda p: objective.encoder.apply({"params": p}, images, return_layers=True))(params)
    np.testing.assert_allclose(tokens["output"], layers, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["rate"], coding_rate(np.asarray(layers)), rtol=1e-5)
    np.testing.assert_allclose(found["nonzero"], np.not_equal(layers, 0.0).mean(axis=(2, 3)), rtol=1e-6)
    assert (found["nonzero"] < 0.8).all() == (method == "crate_mae")

    # The second block reads the first one's output through its own norm, which is fresh: scale 1, bias 0.
    attention = jax.tree.map(lambda leaf: np.asarray(leaf[1]), params["stack"]["blocks"]["attention"])
    kernel = attention["subspaces"]["kernel"] if method == "crate_mae" else attention["qkv"]["kernel"][:, 2]
    normed = np.asarray(jax.nn.standardize(layers[0], epsilon=1e-5 if method == "crate_mae" else 1e-6))
    expected = subspace_coding_rate(np.einsum("bnd,dhk->bnhk", normed, kernel))
    np.testing.assert_allclose(found["compression"][1], expected, rtol=1e-4)
