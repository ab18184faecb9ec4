import jax
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.masking.rectangles import RectangleSampler


def draw(sampler, batch=64, seed=0):
    return jax.jit(lambda: sampler(jax.random.key(seed), batch))()


def test_every_image_hides_the_share_and_its_patches_hang_together():
    sampler = RectangleSampler((14, 14), 0.6)
    masks = draw(sampler)
    mask = np.asarray(masks.mask).reshape(-1, 14, 14)
    assert masks.num_keep == 78 and (mask.sum(axis=(1, 2)) == 118).all()
    assert len({row.tobytes() for row in mask}) == 64
    # Of random patches as many neighbours agree as chance says; of rectangles far more.
    agree = (mask[:, 1:] == mask[:, :-1]).mean()
    assert agree > 0.7 > 0.6**2 + 0.4**2 + 0.1


def test_hidden_patches_are_rectangles_but_for_the_last():
    """With few hidden there is one rectangle; where it is complete, it is no longer than the longest side."""
    sampler = RectangleSampler((10, 10), 0.04, max_rectangle=0.2)
    mask = np.asarray(draw(sampler, batch=200).mask).reshape(-1, 10, 10)
    squares = 0
    for image in mask:
        rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
        squares += len(rows) == len(columns) == 2 and np.ptp(rows) == np.ptp(columns) == 1
    assert 20 < squares < 120  # a 2x2 comes first a quarter of the time, less at the borders


def test_ratios_are_drawn_for_each_image():
    masks = draw(RectangleSampler((14, 14), 0.6, 0.1), batch=500)
    share = np.asarray(masks.mask).mean(axis=1)
    assert masks.num_keep is None
    assert 0.495 < share.min() < 0.52 and 0.68 < share.max() < 0.705
    assert abs(share.mean() - 0.6) < 0.01
    order = np.asarray(masks.order)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(196), (500, 1)))
    assert (np.diff(np.take_along_axis(np.asarray(masks.mask), order, axis=1).astype(int), axis=1) >= 0).all()


@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (3, 5)])
@pytest.mark.parametrize("ratio", [0.5, 0.7])
def test_the_rectangles_drawn_nearly_always_suffice(grid, ratio):
    sampler = RectangleSampler(grid, ratio)
    first = jax.jit(lambda: sampler._first_covering(jax.random.key(3), 400))()
    covered = (np.asarray(first) < sampler.num_rectangles).mean(axis=1)
    assert (covered >= ratio - 1e-6).mean() > 0.99


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        (dict(mask_ratio=1.0), "mask_ratio is 1.0"),
        (dict(mask_ratio=0.96), "mask_ratio 0.96 keeps 0 of 16"),
        (dict(mask_ratio_spread=0.4), "mask_ratio_spread is 0.4"),
        (dict(mask_ratio_spread=-0.1), "mask_ratio_spread is -0.1"),
        (dict(max_rectangle=0.0), "max_rectangle is 0.0"),
    ],
)
def test_impossible_settings(sizes, match):
    with pytest.raises(ConfigError, match=match):
        RectangleSampler((4, 4), **sizes)
