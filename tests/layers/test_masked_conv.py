import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.layers.depthwise import grouped_convolution
from mim_jax.layers.masked_conv import MaskedConvStage
from mim_jax.layers.patches import patchify, unpatchify
from mim_jax.masking.visible import Visible

GRID, SIDE, WIDTH = (2, 3), 4, 6
IDS = jnp.asarray([[4, 0, 2], [1, 5, 3]], jnp.int32)


@pytest.fixture(scope="module")
def stage():
    return MaskedConvStage(depth=2, grid=GRID, side=SIDE, mlp_hidden=12)


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (2, 6, SIDE * SIDE, WIDTH))


@pytest.fixture(scope="module")
def variables(stage, x):
    return jax.jit(stage.init)(jax.random.key(1), x)


def rows(x, ids):
    return jnp.take_along_axis(x, ids[:, :, None, None], axis=1)


def dense(variables, x, hidden):
    """The stage as in the paper: computed everywhere, the input of the convolution zeroed where hidden `[B, N]`."""
    maps = unpatchify(x.reshape(2, 6, -1), (SIDE, SIDE), GRID)
    visible = jnp.repeat(jnp.repeat(~hidden.reshape(2, *GRID), SIDE, axis=1), SIDE, axis=2)[..., None]

    def affine(x, params):
        return jnp.einsum("bhwi,io->bhwo", x, params["kernel"]) + params["bias"][None, None, None]

    def norm(x, params):
        x = (x - x.mean(axis=-1, keepdims=True)) / jnp.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
        return x * params["scale"][None, None, None] + params["bias"][None, None, None]

    for layer in range(2):
        p = jax.tree.map(lambda leaf: leaf[layer], variables["params"]["blocks"])  # noqa: B023
        h = jnp.where(visible, affine(norm(maps, p["norm1"]), p["conv1"]), 0.0)
        h = grouped_convolution(h, p["depthwise"]["kernel"], 2) + p["depthwise"]["bias"][None, None, None]
        maps = maps + affine(h, p["conv2"])
        h = jax.nn.gelu(affine(norm(maps, p["norm2"]), p["mlp"]["fc1"]), approximate=False)
        maps = maps + affine(h, p["mlp"]["fc2"])
    return patchify(maps, (SIDE, SIDE)).reshape(x.shape)


def test_visible_patches_come_out_as_if_all_were_computed(stage, variables, x):
    visible = Visible.from_ids(IDS, 6)
    ours = jax.jit(stage.apply)(variables, rows(x, IDS), visible)
    expected = jax.jit(dense)(variables, x, visible.slots == 3)
    np.testing.assert_allclose(ours, rows(expected, IDS), rtol=1e-4, atol=1e-5)


def test_without_a_mask_all_patches_are_visible(stage, variables, x):
    apply = jax.jit(stage.apply)
    ids = jnp.broadcast_to(jnp.asarray([3, 1, 5, 0, 2, 4], jnp.int32)[None], (2, 6))
    shuffled = apply(variables, rows(x, ids), Visible.from_ids(ids, 6))
    np.testing.assert_allclose(shuffled, rows(apply(variables, x), ids), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        apply(variables, x), jax.jit(dense)(variables, x, jnp.zeros((2, 6), bool)), rtol=1e-4, atol=1e-5
    )


def test_kernels_and_biases_start_as_pytorchs_convolutions(variables):
    blocks = variables["params"]["blocks"]
    limits = {"conv1": 6, "conv2": 6, "depthwise": 25}
    layers = {name: blocks[name] for name in limits} | {"fc1": blocks["mlp"]["fc1"], "fc2": blocks["mlp"]["fc2"]}
    for name, fan_in in (limits | {"fc1": 6, "fc2": 12}).items():
        for leaf in jax.tree.leaves(layers[name]):
            largest = np.abs(leaf).max()
            assert 0.5 / np.sqrt(fan_in) < largest <= 1 / np.sqrt(fan_in), name


def test_drop_path_drops_whole_samples(x):
    stage = MaskedConvStage(depth=1, grid=GRID, side=SIDE, mlp_hidden=12, drop_path=(0.5, 0.5))
    x = jnp.broadcast_to(x[:1], (16, *x.shape[1:]))
    variables = jax.jit(stage.init)(jax.random.key(1), x)
    apply = jax.jit(lambda rng: stage.apply(variables, x, deterministic=False, rngs={"drop_path": rng}))
    out = np.asarray(apply(jax.random.key(2)))
    assert len({row.tobytes() for row in out}) == 4  # either branch dropped or not
    assert any((row == np.asarray(x[0])).all() for row in out)
