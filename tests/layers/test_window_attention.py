import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.layers.block import Block
from mim_jax.layers.compute import Compute
from mim_jax.layers.window_attention import EPSILON, WindowBlock, WindowPair, Windows
from tests.models.hlo import moved_arrays

RATE = jnp.zeros((), jnp.float32)


def block(windows, **options):
    return WindowBlock(windows, heads=2, mlp_hidden=12, **options)


def windows_of(windows, batch=2, width=8):
    return windows.cut(jax.random.normal(jax.random.key(0), (batch, *windows.grid, width)))


def randomized(module, x):
    """Parameters of which none is zero."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, RATE)
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        structure, [0.3 * jax.random.normal(k, s.shape) for k, s in zip(keys, leaves, strict=True)]
    )


@pytest.mark.parametrize("windows", [Windows((6, 9), 3), Windows((6, 9), 3, 1), Windows((5, 7), 4, 2)])
def test_join_undoes_cut(windows):
    maps = jax.random.normal(jax.random.key(0), (2, *windows.grid, 3))
    np.testing.assert_array_equal(windows.join(windows.cut(maps)), maps)


def test_shifted_windows_lie_across_the_borders_and_around_the_map():
    numbers = jnp.arange(16, dtype=jnp.float32).reshape(1, 4, 4, 1)
    cut = np.asarray(Windows((4, 4), 2, 1).cut(numbers))[0, :, :, 0]
    np.testing.assert_array_equal(cut, [[5, 6, 9, 10], [7, 4, 11, 8], [13, 14, 1, 2], [15, 12, 3, 0]])


@pytest.mark.parametrize(("grid", "side", "fitted"), [((6, 6), 6, 6), ((6, 9), 7, 6), ((9, 8), 7, 7)])
def test_windows_are_no_larger_than_the_map_and_one_alone_is_not_shifted(grid, side, fitted):
    windows = Windows.fit(grid, side, shifted=True)
    assert (windows.side, windows.shift) == (fitted, fitted // 2 if fitted < min(grid) else 0)
    assert Windows.fit(grid, side, shifted=False).shift == 0


def test_tokens_that_are_no_neighbours_are_kept_apart():
    windows = Windows((9, 6), 3, 1)
    separation = windows.separation()
    positions = np.stack(np.meshgrid(np.arange(9), np.arange(6), indexing="ij"), axis=-1)[None].astype(np.float32)
    tokens = np.asarray(windows.cut(jnp.asarray(positions)))[0]  # [M, S, 2]
    distance = np.abs(tokens[:, :, None] - tokens[:, None]).max(axis=-1)
    np.testing.assert_array_equal(separation, np.where(distance < 3, 0.0, -100.0))
    assert (separation < 0).any() and separation.dtype == np.float32
    assert Windows((9, 6), 3).separation() is None


def test_without_table_and_shift_each_window_is_a_sequence_of_its_own():
    windows = Windows((6, 6), 3)
    x = windows_of(windows)
    params = randomized(block(windows), x)["params"]
    silent = {**params, "relative_bias": jax.tree.map(jnp.zeros_like, params["relative_bias"])}
    out = jax.jit(block(windows).apply)({"params": silent}, x, RATE)
    del silent["relative_bias"]
    plain = Block(heads=2, mlp_hidden=12, norm_epsilon=EPSILON)
    expected, _ = jax.jit(plain.apply)({"params": silent}, x.reshape(8, 9, 8), RATE)
    np.testing.assert_allclose(out.reshape(8, 9, 8), expected, rtol=1e-5, atol=1e-5)
    biased = jax.jit(block(windows).apply)({"params": params}, x, RATE)
    assert np.abs(biased - out).max() > 1e-2


def test_a_token_reaches_its_neighbours_in_the_window_alone():
    windows = Windows((6, 6), 3, 1)
    module, maps = block(windows), jax.random.normal(jax.random.key(0), (1, 6, 6, 8))
    params = randomized(module, windows.cut(maps))
    encode = jax.jit(lambda maps: windows.join(module.apply(params, windows.cut(maps), RATE)))
    changed = np.asarray(encode(maps) != encode(maps.at[0, 5, 4].set(maps[0, 2, 2])))[0].any(axis=-1)
    # The last window holds rows and columns 4, 5 and, from the other side, 0.
    expected = np.zeros((6, 6), bool)
    expected[4:, 4:] = True
    np.testing.assert_array_equal(changed, expected)


def test_what_stands_in_the_padding_has_no_effect():
    windows = Windows((5, 7), 4, 2)
    x, valid = windows_of(windows), windows.valid()[None, :, :, None]
    assert windows.padded_grid == (8, 8) and valid.sum() == 35
    params = randomized(block(windows), x)
    apply = jax.jit(block(windows).apply)
    dirty = jnp.where(valid, x, jax.random.normal(jax.random.key(2), x.shape))
    clean, other = windows.join(apply(params, x, RATE)), windows.join(apply(params, dirty, RATE))
    np.testing.assert_array_equal(clean, other)


def test_drop_path_is_drawn_once_for_all_windows_of_an_image():
    windows = Windows((4, 4), 2)
    x = jnp.broadcast_to(windows_of(windows, batch=1), (64, 4, 4, 8))
    module = block(windows, stochastic=True)
    params, rngs = randomized(module, x), {"drop_path": jax.random.key(3)}
    rate = jnp.asarray(0.5, jnp.float32)
    out = np.asarray(jax.jit(lambda: module.apply(params, x, rate, rngs=rngs))())
    assert len({image.tobytes() for image in out}) == 4  # both branches or none, attention alone, the MLP alone
    untouched = (out == np.asarray(x)).all(axis=(2, 3))  # [B, M]
    assert (untouched.all(axis=1) == untouched.any(axis=1)).all() and 0 < untouched.sum() < untouched.size


@pytest.mark.parametrize("shift", [0, 1])
def test_attention_kernels_agree(shift):
    windows = Windows((6, 6), 3, shift)
    x = windows_of(windows)
    params = randomized(block(windows), x)
    outputs = [jax.jit(block(windows, compute=Compute(attention=k)).apply)(params, x, RATE) for k in ("einsum", "xla")]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-4)


def test_activations_move_only_where_heads_are_told_apart_and_windows_cut():
    """Of each attention query, key, value and output, forward and backward; and between the blocks the map."""
    module = WindowPair(grid=(6, 6), side=3, heads=2, mlp_hidden=16, compute=Compute(scan=False))
    # No other axis than the batch's is a multiple of five.
    x, rates = jax.ShapeDtypeStruct((5, 4, 9, 8), jnp.float32), jnp.zeros((2,))
    variables = jax.eval_shape(module.init, jax.random.key(0), x, rates)

    def both_passes(variables, x, cotangent):
        y, backward = jax.vjp(lambda variables, x: module.apply(variables, x, rates)[0], variables, x)
        return y, backward(cotangent)

    text = jax.jit(both_passes).lower(variables, x, x).compile().as_text()
    moved = [i for i in moved_arrays(text) if any(n % 5 == 0 for n in i.shape)]
    heads = [i for i in moved if "/attention/" in i.source and i.shape in ((20, 9, 2, 4), (20, 2, 9, 4))]
    cuts = [i for i in moved if re.search(r"WindowPair\)+/transpose$", i.source)]
    assert len(heads) == 2 * 8 and cuts
    assert len(heads) + len(cuts) == len(moved), [(i.result, i.source) for i in moved]
