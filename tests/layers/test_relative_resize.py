import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq

from mim_jax.layers.relative_resize import resize_relative_table


def random_table(side, heads=2):
    return np.random.default_rng(0).normal(size=(side * side, heads)).astype(np.float32)


@pytest.mark.parametrize(("source", "target"), [(11, 13), (9, 13), (13, 15)])
def test_splines_run_through_offsets_in_a_geometric_progression(source, target):
    table, reach = random_table(source), target // 2
    ratio = brentq(lambda q: sum(q**k for k in range(source // 2)) - reach, 1.001, 1.6, xtol=1e-12)
    positive = np.cumsum([ratio**k for k in range(source // 2)])
    offsets = np.concatenate([-positive[::-1], [0], positive])
    steps = np.clip(np.arange(-reach, reach + 1), offsets[0], offsets[-1])
    grid = table.reshape(source, source, -1).astype(np.float64)
    expected = CubicSpline(offsets, CubicSpline(offsets, grid, axis=0)(steps), axis=1)(steps)
    resized = resize_relative_table(table, (source, source), (target, target))
    np.testing.assert_allclose(resized.reshape(target, target, -1), expected, atol=1e-4)
    assert resized.dtype == np.float32


def test_nearby_offsets_keep_their_values():
    table = random_table(11).reshape(11, 11, -1)
    resized = resize_relative_table(table.reshape(121, -1), (11, 11), (13, 13)).reshape(13, 13, -1)
    np.testing.assert_allclose(resized[5:8, 5:8], table[4:7, 4:7], atol=1e-5)  # offsets -1, 0 and 1


def test_smaller_windows_read_inside():
    table = random_table(13)
    resized = resize_relative_table(table, (13, 13), (11, 11))
    assert resized.shape == (121, 2) and np.isfinite(resized).all()
    np.testing.assert_allclose(resized[60], table[84], atol=1e-6)  # the middle


def test_the_same_windows_keep_their_table():
    table = random_table(5)
    assert resize_relative_table(table, (5, 5), (5, 5)) is table
