import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.masking.disjoint_cells import DisjointCellSampler
from mim_jax.masking.token_mask import TokenMask

# mask_ratio, cell, visible patches of a view, patches hidden in both: the two kinds of masks of the official code.
OFFICIAL = [pytest.param(0.6, (2, 2), 76, 44, id="block"), pytest.param(0.75, (1, 1), 49, 98, id="rand")]


def views_of(sampler, batch=8, seed=0):
    return jax.jit(sampler, static_argnums=1)(jax.random.key(seed), batch)


@pytest.mark.parametrize(("ratio", "cell", "visible", "twice"), OFFICIAL)
def test_views_are_disjoint_and_cover_the_image(ratio, cell, visible, twice):
    views = views_of(DisjointCellSampler((14, 14), cell, ratio))
    first, second = (np.asarray(view.mask) for view in views)
    assert views.first.num_keep == views.second.num_keep == visible
    assert ((~first).sum(axis=1) == visible).all() and ((~second).sum(axis=1) == visible).all()
    assert (first | second).all()
    assert ((first & second).sum(axis=1) == twice).all()


@pytest.mark.parametrize("grid", [(14, 14), (6, 10)])
def test_cells_are_hidden_whole(grid):
    for view in views_of(DisjointCellSampler(grid, (2, 2))):
        cells = np.asarray(view.mask).reshape(8, grid[0] // 2, 2, grid[1] // 2, 2)
        assert (cells.all(axis=(2, 4)) == cells.any(axis=(2, 4))).all()


@pytest.mark.parametrize(("ratio", "cell", "visible", "twice"), OFFICIAL)
def test_order_mask_and_count_of_a_view_agree(ratio, cell, visible, twice):
    for view in views_of(DisjointCellSampler((14, 14), cell, ratio)):
        np.testing.assert_array_equal(np.sort(view.order, axis=1), np.broadcast_to(np.arange(196), (8, 196)))
        hidden = np.take_along_axis(np.asarray(view.mask), np.asarray(view.order), axis=1)
        np.testing.assert_array_equal(hidden, np.broadcast_to(np.arange(196) >= visible, (8, 196)))


def test_tokens_stand_corner_by_corner_in_the_order_of_their_cells():
    sampler = DisjointCellSampler((4, 6), (2, 2), mask_ratio=0.5)
    noise = jnp.asarray([[0.4, 0.1, 0.9, 0.3, 0.8, 0.5]])  # cells by noise: 1, 3, 0 | 5, 4, 2
    views = sampler.from_draws(noise, jnp.asarray([2, 0, 1]), jnp.asarray([1, 2, 0]))
    corners = {0: 0, 1: 2, 2: 4, 3: 12, 4: 14, 5: 16}  # first token of each cell
    offsets = (0, 1, 6, 7)
    assert views.first.ids_keep[0].tolist() == [corners[cell] + offset for offset in offsets for cell in (1, 3, 0)]
    # The second view hides the three cells that the first shows and shows the hidden ones, shuffled: 4, 2, 5.
    assert views.second.ids_keep[0].tolist() == [corners[cell] + offset for offset in offsets for cell in (4, 2, 5)]
    assert views.second.ids_hidden[0].tolist() == [corners[cell] + offset for offset in offsets for cell in (0, 1, 3)]


def test_a_lower_prediction_ratio_exchanges_fewer_cells():
    sampler = DisjointCellSampler((10, 10), (1, 1), mask_ratio=0.6, prediction_ratio=0.75)
    first, second = (np.asarray(view.mask) for view in views_of(sampler))
    assert sampler.exchanged_cells == 15
    assert ((first | second).sum(axis=1) == 75).all()
    assert (second.sum(axis=1) == 60).all()


def test_a_mask_ratio_below_a_half_shows_some_patches_twice():
    sampler = DisjointCellSampler((10, 10), (1, 1), mask_ratio=0.25)
    first, second = (np.asarray(view.mask) for view in views_of(sampler))
    assert (second.sum(axis=1) == 25).all()
    assert not (first & second).any()


def test_images_differ_but_share_the_ranks_that_are_exchanged():
    views = views_of(DisjointCellSampler((14, 14), (1, 1), 0.75), batch=32)
    assert len({row.tobytes() for row in np.asarray(views.first.mask)}) == 32
    rank_in_first = np.asarray(views.first.ids_restore)
    shown = np.take_along_axis(rank_in_first, np.asarray(views.second.ids_keep), axis=1)
    assert (shown == shown[:1]).all()


def test_merged_rows_are_both_views_of_each_image():
    views = views_of(DisjointCellSampler((4, 4), (2, 2), 0.5), batch=3)
    merged = views.merged()
    for image in range(3):
        for view in range(2):
            np.testing.assert_array_equal(merged.mask[2 * image + view], views[view].mask[image])
            np.testing.assert_array_equal(merged.ids_keep[2 * image + view], views[view].ids_keep[image])


def test_from_order_keeps_the_first_tokens_in_their_order():
    mask = TokenMask.from_order(jnp.asarray([[3, 1, 0, 2]]), 2)
    assert mask.ids_keep.tolist() == [[3, 1]] and mask.ids_keep.dtype == jnp.int32
    assert mask.mask.tolist() == [[True, False, True, False]]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(cell=(3, 3)), "tile"),
        (dict(mask_ratio=0.99), "mask_ratio"),
        (dict(prediction_ratio=0.5), "prediction_ratio"),
        (dict(prediction_ratio=1.1), "prediction_ratio"),
    ],
)
def test_impossible_ratios_are_refused(change, match):
    with pytest.raises(ConfigError, match=match):
        DisjointCellSampler(**{"grid": (14, 14), **change})
