import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mim_jax.errors import ConfigError
from mim_jax.targets.neighbors import neighbor_table, similar_neighbors


def test_the_corner_of_the_official_grid():
    assert neighbor_table((14, 14))[0].tolist() == [1, 13, 14, 15, 27, 182, 183, 195]


@pytest.mark.parametrize("grid", [(3, 3), (6, 6), (14, 14), (3, 5), (7, 4)])
def test_eight_distinct_others_and_the_relation_is_symmetric(grid):
    table = neighbor_table(grid)
    count = grid[0] * grid[1]
    assert table.shape == (count, 8) and table.dtype == np.int32
    assert table.min() >= 0 and table.max() < count
    assert (np.diff(table, axis=1) > 0).all()
    related = np.zeros((count, count), bool)
    related[np.arange(count)[:, None], table] = True
    assert not related.diagonal().any()
    np.testing.assert_array_equal(related, related.T)


def test_an_inner_patch_has_the_cells_around_it():
    assert neighbor_table((5, 6))[2 * 6 + 3].tolist() == [8, 9, 10, 14, 16, 20, 21, 22]


def test_a_wider_window():
    table = neighbor_table((7, 7), 5)
    assert table.shape == (49, 24)
    rows, columns = np.divmod(table[24], 7)
    assert {*rows} == {*columns} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("grid", "window", "message"),
    [
        ((2, 8), 3, "head.window is 3, but there are only 2x8 patches"),
        ((4, 4), 5, "head.window is 5, but"),
        ((14, 14), 4, "head.window is 4; it must be odd"),
        ((14, 14), 1, "head.window is 1; it must be odd and at least 3"),
    ],
)
def test_impossible_windows_are_refused(grid, window, message):
    with pytest.raises(ConfigError, match=message):
        neighbor_table(grid, window)


def test_the_most_similar_are_pytorchs():
    table = neighbor_table((4, 5))
    features = torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(features, dim=-1)
    similarity = (unit[:, :, None] * unit[:, torch.from_numpy(table)]).sum(dim=-1)
    index = similarity.topk(4, dim=-1).indices
    expected = torch.from_numpy(table)[None].expand(3, -1, -1).gather(2, index)
    np.testing.assert_array_equal(similar_neighbors(jnp.asarray(features.numpy()), table, 4), expected.numpy())


def test_the_length_of_a_feature_does_not_matter():
    table = neighbor_table((4, 4))
    features = jax.random.normal(jax.random.key(0), (2, 16, 6))
    lengths = jax.random.uniform(jax.random.key(1), (2, 16, 1), minval=0.1, maxval=10.0)
    np.testing.assert_array_equal(
        similar_neighbors(features * lengths, table, 4), similar_neighbors(features, table, 4)
    )


def test_a_feature_of_zeros_is_similar_to_nothing():
    table = neighbor_table((3, 3))
    chosen = similar_neighbors(jnp.zeros((1, 9, 4)), table, 4)
    np.testing.assert_array_equal(chosen[0], table[:, :4])
