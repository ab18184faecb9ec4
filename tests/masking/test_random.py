import math

import jax
import numpy as np
import pytest
from scipy import stats

from mim_jax.errors import ConfigError
from mim_jax.masking.random import random_cell_mask, random_mask


def test_every_position_is_hidden_equally_often():
    draws, tokens, ratio = 4000, 16, 0.75
    mask = np.asarray(random_mask(jax.random.key(0), draws, tokens, ratio).mask)
    hidden = mask.sum(axis=0)
    p_values = [stats.binomtest(int(h), draws, ratio).pvalue for h in hidden]
    assert min(p_values) > 1e-4


def test_samples_of_a_batch_differ():
    mask = np.asarray(random_mask(jax.random.key(0), 32, 49, 0.6).mask)
    assert len({row.tobytes() for row in mask}) == 32


@pytest.mark.parametrize(
    ("grid", "cell", "ratio"), [((14, 14), (2, 2), 0.6), ((7, 7), (1, 1), 0.5), ((8, 12), (4, 2), 0.4)]
)
def test_cells_are_hidden_whole_and_counted_by_ceil(grid, cell, ratio):
    mask = random_cell_mask(jax.random.key(1), 20, grid, cell, ratio)
    rows, columns = grid[0] // cell[0], grid[1] // cell[1]
    blocks = np.asarray(mask.mask).reshape(20, rows, cell[0], columns, cell[1]).transpose(0, 1, 3, 2, 4)
    per_cell = blocks.reshape(20, rows * columns, -1)
    assert (per_cell.all(axis=-1) == per_cell.any(axis=-1)).all()
    expected = math.ceil(rows * columns * ratio)
    assert (per_cell.all(axis=-1).sum(axis=1) == expected).all()
    assert mask.num_keep == grid[0] * grid[1] - expected * cell[0] * cell[1]


def test_simmims_counts():
    mask = np.asarray(random_cell_mask(jax.random.key(0), 2, (14, 14), (2, 2), 0.6).mask)
    assert (mask.sum(axis=1) == 30 * 4).all()  # ceil(49 * 0.6) cells of four tokens


def test_cells_that_do_not_tile_are_refused():
    with pytest.raises(ConfigError, match="mask_patch_size"):
        random_cell_mask(jax.random.key(0), 1, (7, 7), (2, 2), 0.5)
    with pytest.raises(ConfigError, match="hides all"):
        random_cell_mask(jax.random.key(0), 1, (4, 4), (2, 2), 0.9)
