"""The hash and the permutation the whole stream rests on."""

import numpy as np
import pytest

from mim_jax.data.stateless import Stream, keys, permute, uniforms

GOLDEN_ORDER = [8, 7, 9, 3, 5, 1, 4, 2, 6, 0]
GOLDEN_UNIFORMS = [[0.5787617740655686, 0.29669369763129216], [0.018182625742437564, 0.6976542610955662]]


def shuffled(seed: int, epoch: int, size: int) -> list[int]:
    return permute(seed, np.full(size, epoch), np.arange(size), size).tolist()


def test_values_never_change():
    assert shuffled(0, 0, 10) == GOLDEN_ORDER
    np.testing.assert_allclose(uniforms(7, Stream.CROP, np.array([0, 10**12]), 2), GOLDEN_UNIFORMS, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 17, 1000, 4097])
def test_every_epoch_is_a_permutation(size):
    for epoch in (0, 1, 10**9):
        assert sorted(shuffled(3, epoch, size)) == list(range(size))


def test_orders_differ_between_seeds_and_epochs():
    orders = [shuffled(seed, epoch, 50) for seed in (0, 1, -1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 6


def test_each_element_stands_anywhere_equally_often():
    size, epochs = 6, 6000
    places = np.array([permute(0, np.arange(epochs), np.full(epochs, place), size) for place in range(size)])
    counts = np.array([np.bincount(row, minlength=size) for row in places])
    expected = epochs / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 60  # 25 degrees of freedom: exceeded by chance once in 10,000


def test_neighbours_are_not_correlated():
    order = np.array(shuffled(0, 0, 5000))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


def test_a_point_does_not_depend_on_the_others():
    whole = permute(5, np.arange(100), np.arange(100) % 9, 9)
    assert whole[40:43].tolist() == permute(5, np.arange(40, 43), np.arange(40, 43) % 9, 9).tolist()


def test_uniforms_are_uniform_and_independent():
    draws = uniforms(0, Stream.FLIP, np.arange(20000), 3)
    assert draws.min() >= 0 and draws.max() < 1
    np.testing.assert_allclose(draws.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(draws.var(axis=0), 1 / 12, atol=0.002)
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(3), atol=0.03)


def test_streams_and_seeds_are_independent():
    positions = np.arange(20000)
    draws = [uniforms(seed, stream, positions, 1)[:, 0] for seed in (0, 1) for stream in (Stream.CROP, Stream.FLIP)]
    np.testing.assert_allclose(np.corrcoef(draws), np.eye(4), atol=0.03)


def test_keys_do_not_collide():
    assert len(np.unique(keys(0, Stream.ORDER, np.arange(100000)))) == 100000
