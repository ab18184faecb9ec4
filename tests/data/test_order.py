"""Positions, slices and replacements."""

import numpy as np
import pytest

from mim_jax.data.order import TrainOrder, local_slice
from mim_jax.errors import ConfigError


def test_slices_tile_the_batch():
    assert [local_slice(12, index, 3) for index in range(3)] == [(0, 4), (4, 4), (8, 4)]


@pytest.mark.parametrize(("batch", "processes"), [(10, 3), (0, 1), (2, 4)])
def test_a_batch_that_does_not_divide(batch, processes):
    with pytest.raises(ConfigError, match=f"batch_size {batch} does not divide among {processes} processes"):
        local_slice(batch, 0, processes)


def test_a_process_that_does_not_exist():
    with pytest.raises(ConfigError, match="process_index is 2, but the 2 processes count from 0"):
        local_slice(8, 2, 2)


def test_positions_count_examples_seen():
    order = TrainOrder(seed=0, size=100, batch_size=8)
    assert order.positions(3, 4, 4).tolist() == [28, 29, 30, 31]
    assert order.positions(10**12, 0, 1).tolist() == [8 * 10**12]


def test_a_replacement_is_another_example_of_the_same_epoch():
    order = TrainOrder(seed=0, size=10, batch_size=2)
    for position in range(0, 30, 3):
        own = int(order.indices(np.array([position]))[0])
        others = {order.replacement(position, attempt) for attempt in range(50)}
        assert own not in others and others == set(range(10)) - {own}
        assert order.replacement(position, 0) == order.replacement(position, 0)


def test_replacements_are_spread_evenly():
    order = TrainOrder(seed=0, size=10, batch_size=2)
    counts = np.bincount([order.replacement(position, 0) for position in range(1000)], minlength=10)
    assert counts.min() > 60 and counts.max() < 145


def test_repeats_are_neighbours_and_epochs_show_different_parts():
    order = TrainOrder(seed=0, size=10, batch_size=5, repeats=3)
    plain = TrainOrder(seed=0, size=10, batch_size=5)
    for epoch in range(3):
        positions = epoch * 10 + np.arange(10)
        shown = plain.indices(positions)[:4]  # three times each, but for the last one
        np.testing.assert_array_equal(order.indices(positions), np.repeat(shown, 3)[:10])
    # Whatever slice is asked for, by whichever process, and at whatever step a run goes on.
    stream = np.concatenate([order.indices(order.positions(step, 0, 5)) for step in range(6)])
    np.testing.assert_array_equal(order.indices(order.positions(4, 2, 3)), stream[22:25])


def test_a_replacement_of_a_repeated_example_is_another_one():
    order = TrainOrder(seed=0, size=10, batch_size=5, repeats=3)
    for position in (0, 1, 17, 29):
        own = int(order.indices(np.array([position]))[0])
        assert {order.replacement(position, attempt) for attempt in range(60)} == set(range(10)) - {own}
