import math
import random

import jax
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.masking.block import block_mask

GRID, HIDDEN = (14, 14), 98


@pytest.fixture(scope="module")
def drawn():
    """`[2000, 14, 14]` bool."""
    masks = jax.jit(lambda rng: block_mask(rng, 2000, GRID, HIDDEN))(jax.random.key(0))
    assert masks.num_keep == 98 and masks.ids_hidden.shape == (2000, 98)
    return np.asarray(masks.mask).reshape(-1, *GRID)


def described(rng, grid, count, min_block=16, min_aspect=0.3):
    """A mask by the sheet's words, one rectangle after the other."""
    height, width = grid
    mask = np.zeros(grid, bool)
    while (missing := count - mask.sum()) > 0:
        area = rng.uniform(min_block, missing)
        aspect = math.exp(rng.uniform(math.log(min_aspect), math.log(1 / min_aspect)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w < width and h < height:
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
            block = np.zeros(grid, bool)
            block[top : top + h, left : left + w] = True
            if 0 < (block & ~mask).sum() <= missing:
                mask |= block
    return mask


def test_every_image_has_the_exact_count_and_a_mask_of_its_own(drawn):
    assert (drawn.sum(axis=(1, 2)) == HIDDEN).all()
    assert len({mask.tobytes() for mask in drawn}) > 1990


def test_the_centre_is_hidden_far_more_often_than_the_corners(drawn):
    rate = drawn.mean(axis=0)
    corner = rate[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corner.max() < 0.1 and rate[6:8, 6:8].min() > 0.8
    assert 0.22 < rate[0, 7] < 0.33


@pytest.mark.parametrize(
    ("grid", "count", "options"),
    [(GRID, HIDDEN, {}), ((5, 8), 15, dict(min_block=12, min_aspect=0.5))],
)
def test_masks_are_distributed_as_described(grid, count, options):
    rng, size = random.Random(0), 2000
    theirs = np.stack([described(rng, grid, count, **options) for _ in range(size)])
    ours = jax.jit(lambda key: block_mask(key, size, grid, count, **options))(jax.random.key(1))
    ours = np.asarray(ours.mask).reshape(theirs.shape)
    # Of two samples of this size a rate differs by more than 5 deviations once in a million places.
    tolerance = 5 * math.sqrt(2 * 0.25 / size)
    assert np.abs(ours.mean(axis=0) - theirs.mean(axis=0)).max() < tolerance
    for axis in (1, 2):  # a rectangle never spans the grid, so that whole columns and rows are rare
        lines = [masks.all(axis=axis).any(axis=1).mean() for masks in (ours, theirs)]
        assert abs(lines[0] - lines[1]) < tolerance
    for axis in (1, 2):  # neighbours are alike, along rows and columns, as often
        joint = [(np.diff(masks, axis=axis) == 0).mean(axis=(1, 2)) for masks in (ours, theirs)]
        deviation = math.sqrt(sum(values.var() for values in joint) / size)
        assert abs(joint[0].mean() - joint[1].mean()) < 5 * deviation


def test_a_count_no_rectangles_reach_is_made_up():
    masks = jax.jit(lambda key: block_mask(key, 8, (2, 2), 3, min_block=400))(jax.random.key(0))
    assert (np.asarray(masks.mask).sum(axis=1) == 3).all()


@pytest.mark.parametrize(
    ("grid", "count", "options", "match"),
    [
        ((1, 8), 4, {}, "grid of at least 2x2"),
        ((4, 4), 16, {}, "cannot hide 16 of 16"),
        ((4, 4), 0, {}, "cannot hide 0 of 16"),
        ((4, 4), 8, dict(min_block=0), "min_block is 0"),
        ((4, 4), 8, dict(min_aspect=0.0), "min_aspect 0.0"),
    ],
)
def test_impossible_settings_are_refused(grid, count, options, match):
    with pytest.raises(ConfigError, match=match):
        block_mask(jax.random.key(0), 2, grid, count, **options)
