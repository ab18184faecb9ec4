"""The matrix that mixes a student's blocks, and the adapters after it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.models.dynamic_alignment import ADAPTERS, DynamicAlignment
from mim_jax.training.flops import count_flops

KEY = jax.random.key(0)
LAYERS = np.random.default_rng(0).normal(size=(3, 2, 4, 8)).astype(np.float32)


def make(**changes):
    alignment = DynamicAlignment(**{"num_levels": 3, "width": 6, "levels": (2, 3), **changes})
    return alignment, alignment.init(KEY, LAYERS)["params"]


def test_the_matrix_starts_as_the_identity_and_a_hundredth_everywhere():
    _, params = make()
    np.testing.assert_allclose(params["mixing"], np.eye(3) + 0.01, rtol=1e-6)
    _, params = make(num_levels=5, fusion="sum")
    np.testing.assert_allclose(params["mixing"], np.full((5, 3), 1 / 3), rtol=1e-6)


def test_every_level_is_its_row_of_the_matrix_and_its_adapter():
    alignment, params = make()
    aligned = alignment.apply({"params": params}, LAYERS)
    assert aligned.shape == (2, 2, 4, 6)
    for index, level in enumerate((2, 3)):
        mixed = np.einsum("j,jbtd->btd", np.asarray(params["mixing"])[level - 1], LAYERS)
        dense = jax.tree.map(np.asarray, params[f"level{level}"]["projection"])
        np.testing.assert_allclose(aligned[:, index], mixed @ dense["kernel"] + dense["bias"], rtol=1e-4, atol=1e-5)


def test_the_identity_is_no_fusion():
    alignment, params = make()
    simple, _ = make(fusion="simple")
    adapters = {name: leaves for name, leaves in params.items() if name != "mixing"}
    mixed = alignment.apply({"params": {**adapters, "mixing": jnp.eye(3, dtype=jnp.float32)}}, LAYERS)
    np.testing.assert_allclose(mixed, simple.apply({"params": adapters}, LAYERS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_have_the_layers_of_their_kind(adapter):
    _, params = make(adapter=adapter)
    expected = {
        "linear": {"projection"},
        "norm_linear": {"norm", "projection"},
        "mlp": {"hidden", "projection"},
        "mlp2": {"hidden", "norm", "projection"},
    }
    assert set(params) == {"mixing", "level2", "level3"}
    assert set(params["level2"]) == expected[adapter]


def test_levels_that_are_left_out_cost_nothing():
    one, params = make(levels=(3,))
    two, more = make()
    mixing = 2 * 2 * 4 * 8 * 3
    adapter = 2 * 2 * 4 * 8 * 6
    assert count_flops(one.apply, {"params": params}, LAYERS) == mixing + adapter
    assert count_flops(two.apply, {"params": more}, LAYERS) == 2 * (mixing + adapter)
