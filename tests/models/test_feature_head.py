import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.layers.compute import Compute
from mim_jax.models.feature_head import FeatureHead

FEATURES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 32)), jnp.float32)


def init(**fields):
    return jax.jit(FeatureHead(48, **fields).init)(jax.random.key(0), FEATURES)["params"]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_layers_and_what_they_compute(kind):
    params = init(kind=kind, init_scheme=None)
    assert set(params) == ({"fc1"} if kind == "linear" else {"fc1", "fc2"})
    expected = np.asarray(FEATURES) @ params["fc1"]["kernel"] + params["fc1"]["bias"][None, None]
    if kind == "mlp":
        hidden = [x / 2 * (1 + math.erf(x / math.sqrt(2))) for x in np.asarray(expected).ravel()]
        hidden = np.asarray(hidden, np.float32).reshape(expected.shape)
        expected = hidden @ params["fc2"]["kernel"] + params["fc2"]["bias"][None, None]
    np.testing.assert_allclose(FeatureHead(48, kind).apply({"params": params}, FEATURES), expected, atol=1e-5)


def test_initialisation_is_that_of_the_model_or_pytorchs():
    xavier, torch = init(kind="mlp"), init(kind="mlp", init_scheme=None)
    for name, inputs in (("fc1", 32), ("fc2", 48)):
        assert float(np.abs(xavier[name]["kernel"]).max()) == pytest.approx(math.sqrt(6 / (inputs + 48)), rel=0.05)
        assert not xavier[name]["bias"].any()
        for leaf in jax.tree.leaves(torch[name]):
            assert float(np.abs(leaf).max()) == pytest.approx(1 / math.sqrt(inputs), rel=0.1)


def test_predictions_are_float32():
    head = FeatureHead(8, compute=Compute(dtype="bfloat16"))
    params = head.init(jax.random.key(0), FEATURES)
    assert head.apply(params, FEATURES).dtype == jnp.float32
