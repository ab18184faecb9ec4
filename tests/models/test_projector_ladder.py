"""Ladders of projectors: sums over blocks, one head each."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mim_jax.layers.compute import Compute
from mim_jax.models.projector_ladder import Ladder, ProjectorLadders

DEPTH, WIDTH, OUT = 3, 8, 5


@pytest.fixture(scope="module")
def layers():
    return np.random.default_rng(0).normal(size=(DEPTH, 2, 7, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def ladder():
    return Ladder(OUT, hidden=8, last_hidden=32, init_scheme="normal")


@pytest.fixture(scope="module")
def params(ladder, layers):
    shapes = jax.eval_shape(ladder.init, jax.random.key(0), layers)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(scale=0.5, size=x.shape).astype(np.float32), shapes)


def head(params, layer):
    """The parameters of one block's head."""
    stack, row = ("last", 0) if layer == DEPTH - 1 else ("blocks", layer)
    return jax.tree.map(lambda x: x[row], params[stack]["mlp"])


def by_hand(mlp, x):
    weights = jax.tree.map(torch.from_numpy, mlp)
    hidden = F.gelu(torch.from_numpy(x) @ weights["fc1"]["kernel"] + weights["fc1"]["bias"])
    return (hidden @ weights["fc2"]["kernel"] + weights["fc2"]["bias"]).numpy()


def test_sums_a_head_on_every_block(ladder, params, layers):
    assert head(params, 0)["fc1"]["kernel"].shape == (WIDTH, 8)
    assert head(params, DEPTH - 1)["fc1"]["kernel"].shape == (WIDTH, 32)
    expected = sum(by_hand(head(params, layer), layers[layer]) for layer in range(DEPTH))
    np.testing.assert_allclose(ladder.apply({"params": params}, layers), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", range(DEPTH))
def test_zeroing_the_head_of_a_block_removes_its_part_and_no_other(ladder, params, layers, layer):
    stack, row = ("last", 0) if layer == DEPTH - 1 else ("blocks", layer)
    without = jax.tree.map(np.copy, params)
    for leaf in jax.tree.leaves(without[stack]["mlp"]["fc2"]):
        leaf[row] = 0.0
    difference = ladder.apply({"params": params}, layers) - ladder.apply({"params": without}, layers)
    np.testing.assert_allclose(difference, by_hand(head(params, layer), layers[layer]), rtol=1e-4, atol=1e-5)


def test_a_single_block_has_the_last_head(layers):
    ladder = Ladder(OUT, hidden=8, last_hidden=32)
    params = ladder.init(jax.random.key(0), layers[-1:])["params"]
    assert list(params) == ["last"]


@pytest.mark.parametrize("compute", [Compute(scan=True, remat="full"), Compute(scan=False)])
def test_scanned_or_not_it_is_the_same(params, layers, ladder, compute):
    other = Ladder(OUT, hidden=8, last_hidden=32, compute=compute)
    expected = ladder.apply({"params": params}, layers)
    np.testing.assert_allclose(other.apply({"params": params}, layers), expected, rtol=1e-5, atol=1e-6)


def test_class_tokens_and_patches_have_heads_of_their_own(layers):
    ladders = ProjectorLadders((("a", 5), ("b", 6)), hidden=8, last_hidden=32)
    params = jax.jit(ladders.init)(jax.random.key(0), layers)["params"]
    assert sorted(params) == ["a_class", "a_patch", "b_class", "b_patch"]
    apply = jax.jit(lambda x: ladders.apply({"params": params}, x))
    out = apply(layers)
    assert jax.tree.map(np.shape, out) == {
        "a": {"class": (2, 5), "patch": (2, 6, 5)},
        "b": {"class": (2, 6), "patch": (2, 6, 6)},
    }
    changed = layers.copy()
    changed[:, :, 1:] += 1.0
    other = apply(changed)
    np.testing.assert_array_equal(other["a"]["class"], out["a"]["class"])
    assert not np.allclose(other["b"]["patch"], out["b"]["patch"])
