import math

import jax
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.masking.multiblock import MultiBlockSampler

GRID = (14, 14)


@pytest.fixture(scope="module")
def sampler():
    return MultiBlockSampler(grid=GRID, context_share=40 / 196)


@pytest.fixture(scope="module")
def draws(sampler):
    sample = jax.jit(lambda key: sampler(key, 8))
    return [jax.device_get(sample(jax.random.key(i))) for i in range(60)]


def official_sizes(grid, scale, aspect):
    """Block sizes over a fine sweep of the one uniform number, by the official arithmetic."""
    sizes = set()
    for u in np.linspace(0, 1, 2001):
        area = int(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
        ratio = aspect[0] + u * (aspect[1] - aspect[0])
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        while h >= grid[0]:
            h -= 1
        while w >= grid[1]:
            w -= 1
        sizes.add((h, w))
    return sizes


def test_counts_are_static_and_indices_ascend_in_range(sampler, draws):
    assert sampler.target_tokens == 30  # the smallest official target block on 14x14
    for masks in draws:
        assert masks.context[0].shape == (8, 40)
        assert len(masks.targets) == 4
        for ids in (*masks.context, *masks.targets):
            assert ids.min() >= 0 and ids.max() < 196
            assert (np.diff(ids, axis=1) > 0).all()
        assert all(ids.shape == (8, 30) for ids in masks.targets)


def test_last_row_and_column_are_never_used(draws):
    for masks in draws:
        for ids in (*masks.context, *masks.targets):
            rows, columns = np.divmod(ids, 14)
            assert rows.max() < 13 and columns.max() < 13


def test_context_avoids_targets(draws):
    clean = 0
    for masks in draws:
        for image in range(8):
            targets = set(np.concatenate([ids[image] for ids in masks.targets]).tolist())
            clean += not targets & set(masks.context[0][image].tolist())
    assert clean / (len(draws) * 8) > 0.95  # the rest had fewer patches left


def test_targets_are_rectangles_of_official_sizes(draws):
    seen = set()
    for masks in draws:
        for ids in masks.targets:
            for row in ids:
                ys, xs = np.divmod(row, 14)
                width = xs.max() - xs.min() + 1
                seen.add(int(width))
                # Cut in raster order: full rows of the block, then part of the last.
                full = len(row) // width
                assert (np.unique(ys, return_counts=True)[1][:full] == width).all()
    assert seen <= {w for _, w in official_sizes(GRID, (0.15, 0.2), (0.75, 1.5))}
    assert len(seen) > 1


def test_all_images_of_a_batch_share_the_block_width(draws):
    for masks in draws[:20]:
        widths = {int(np.ptp(row % 14)) for ids in masks.targets for row in ids}
        assert len(widths) == 1


def test_a_crowded_context_is_filled_from_the_last_target_first():
    sampler = MultiBlockSampler(
        grid=(6, 6), num_targets=2, target_scale=(0.3, 0.3), target_aspect=(1.0, 1.0), context_share=24 / 36
    )
    for seed in range(20):
        masks = jax.device_get(sampler(jax.random.key(seed), 4))
        for image in range(4):
            context = set(masks.context[0][image].tolist())
            first, _ = (set(ids[image].tolist()) for ids in masks.targets)
            if context & first:  # only once every patch freed by giving up the last target is in use
                inside = {y * 6 + x for y in range(5) for x in range(5)}
                assert inside - first <= context
            assert len(context) == 24


def test_random_truncation_reaches_the_bottom_rows():
    def lowest_share(truncation):
        sampler = MultiBlockSampler(grid=GRID, context_share=40 / 196, truncation=truncation)
        ids = np.concatenate([np.asarray(sampler(jax.random.key(i), 8).context[0]).ravel() for i in range(30)])
        return (ids // 14 >= 10).mean()

    assert lowest_share("random") > 2 * lowest_share("first")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"context_share": 0.0}, "context_share"),
        ({"truncation": "last"}, "truncation"),
        ({"target_scale": (0.3, 0.2)}, "target_scale"),
        ({"grid": (1, 8)}, "grid"),
    ],
)
def test_impossible_settings_are_refused(changes, match):
    with pytest.raises(ConfigError, match=match):
        MultiBlockSampler(**{"grid": GRID, **changes})
