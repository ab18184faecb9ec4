import math

import jax
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.masking.multiblock3d import MultiBlock3DSampler

GRID = (8, 14, 14)
SHORT = dict(num_blocks=8, scale=(0.15, 0.15))
LONG = dict(num_blocks=2, scale=(0.7, 0.7), context_share=0.12, target_share=0.75)


def official_sizes(scale, aspect=(0.75, 1.5)):
    """`(h, w)` over a fine sweep of the two uniform numbers of a frame, by the sheet's arithmetic."""
    sizes = set()
    for u in np.linspace(0, 1, 201):
        area = int(14 * 14 * (scale[0] + u * (scale[1] - scale[0])))
        for v in np.linspace(0, 1, 2001):
            ratio = aspect[0] + v * (aspect[1] - aspect[0])
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            sizes.add((min(h, 14), min(w, 14)))
        if scale[0] == scale[1]:
            break
    return sizes


def draw_hidden(sampler, draws, batch):
    """`[draws, batch, T, H, W]` bool."""
    sample = jax.jit(lambda key: sampler.hidden(key, batch))
    hidden = np.stack([sample(jax.random.key(i)) for i in range(draws)])
    return hidden.reshape(draws, batch, *sampler.grid)


def box(hidden):
    """Top, left, height and width of what is hidden in a frame `[H, W]`, which must be a rectangle."""
    rows, columns = (np.flatnonzero(hidden.any(axis=axis)) for axis in (1, 0))
    assert hidden[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    return rows[0], columns[0], len(rows), len(columns)


@pytest.fixture(scope="module")
def single_blocks():
    return draw_hidden(MultiBlock3DSampler(grid=GRID, num_blocks=1, scale=(0.15, 0.15)), 120, 6)


def test_masks_go_through_all_frames(single_blocks):
    assert (single_blocks == single_blocks[:, :, :1]).all()


def test_blocks_are_rectangles_of_official_sizes_shared_by_the_batch(single_blocks):
    seen = set()
    for batch in single_blocks[:, :, 0]:
        sizes = {box(frame)[2:] for frame in batch}
        assert len(sizes) == 1
        seen |= sizes
    assert seen <= official_sizes((0.15, 0.15))
    assert len(seen) >= 3


def test_the_last_offset_is_included_and_offsets_are_even(single_blocks):
    boxes = np.array([box(frame) for batch in single_blocks[:, :, 0] for frame in batch])
    tops = boxes[:, 0] / (14 - boxes[:, 2])
    assert tops.min() == 0.0 and tops.max() == 1.0
    assert tops.mean() == pytest.approx(0.5, abs=0.03)
    lefts = boxes[:, 1] / (14 - boxes[:, 3])
    assert lefts.min() == 0.0 and lefts.max() == 1.0
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.1


def test_scale_and_aspect_are_drawn_apart():
    """Unlike I-JEPA's, where one number sets both: large blocks may be wide and small ones tall."""
    hidden = draw_hidden(MultiBlock3DSampler(grid=GRID, num_blocks=1, scale=(0.1, 0.5)), 300, 1)
    boxes = np.array([box(frame) for frame in hidden[:, 0, 0]])
    area, aspect = boxes[:, 2] * boxes[:, 3], boxes[:, 2] / boxes[:, 3]
    assert set(map(tuple, boxes[:, 2:])) <= official_sizes((0.1, 0.5))
    assert abs(np.corrcoef(area, aspect)[0, 1]) < 0.15
    assert ((area > 70) & (aspect < 0.9)).any() and ((area < 40) & (aspect > 1.3)).any()


def test_blocks_may_cover_a_part_of_the_time():
    sampler = MultiBlock3DSampler(grid=(8, 6, 6), num_blocks=1, scale=(0.3, 0.3), temporal_scale=(0.5, 0.5))
    frames = draw_hidden(sampler, 60, 4).any(axis=(3, 4)).reshape(-1, 8)
    assert (frames.sum(axis=1) == 4).all()
    starts = frames.argmax(axis=1)
    assert set(starts) == {0, 1, 2, 3, 4}
    assert all(row[start : start + 4].all() for row, start in zip(frames, starts, strict=True))


@pytest.mark.parametrize(("kind", "context", "targets"), [(SHORT, 464, 861), (LONG, 185, 1176)], ids=["short", "long"])
def test_counts_in_batches_of_four_are_those_measured_of_the_official_code(kind, context, targets):
    hidden = draw_hidden(MultiBlock3DSampler(grid=GRID, **kind), 400, 4).reshape(400, 4, -1).sum(axis=2)
    assert (1568 - hidden).min(axis=1).mean() == pytest.approx(context, rel=0.06)
    assert hidden.min(axis=1).mean() == pytest.approx(targets, rel=0.02)


def draw(sampler, seeds, batch=8):
    sample = jax.jit(lambda key: (sampler(key, batch), sampler.hidden(jax.random.split(key, 3)[0], batch)))
    return [jax.device_get(sample(jax.random.key(seed))) for seed in range(seeds)]


@pytest.mark.parametrize("kind", [SHORT, LONG], ids=["short", "long"])
def test_first_truncation_keeps_the_first_of_each_list(kind):
    sampler, full, cut = MultiBlock3DSampler(grid=GRID, **kind), 0, 0
    for mask, hidden in draw(sampler, 12):
        groups = ((mask.context, mask.context_valid, ~hidden), (mask.targets, mask.targets_valid, hidden))
        for (ids, valid, member), slots in zip(groups, (sampler.context_slots, sampler.target_slots), strict=True):
            assert ids.shape == valid.shape == (8, slots) and ids.dtype == np.int32
            for row, used, everything in zip(ids, valid, member, strict=True):
                expected = np.flatnonzero(everything)[:slots]
                np.testing.assert_array_equal(row[: len(expected)], expected)
                np.testing.assert_array_equal(used, np.arange(slots) < len(expected))
                assert (row[~used] == 0).all()
                full, cut = full + (len(expected) < slots), cut + (everything.sum() > slots)
    assert full and cut  # both kinds of rows have been seen


def test_random_truncation_keeps_as_many_of_all_frames():
    def share_of_late_frames(truncation):
        sampler = MultiBlock3DSampler(grid=GRID, truncation=truncation, context_share=0.2)
        late, count = 0, 0
        for mask, hidden in draw(sampler, 12):
            for row, used, blocked in zip(mask.context, mask.context_valid, hidden, strict=True):
                ids = row[used]
                assert (np.diff(ids) > 0).all() and not blocked[ids].any()
                assert used.sum() == min((~blocked).sum(), sampler.context_slots)
                late, count = late + (ids >= 4 * 196).sum(), count + len(ids)
        return late / count

    assert share_of_late_frames("random") == pytest.approx(0.5, abs=0.02)
    assert share_of_late_frames("first") < 0.2


@pytest.mark.parametrize("kind", [SHORT, LONG], ids=["short", "long"])
def test_context_and_targets_are_disjoint_and_uncut_they_are_everything(kind):
    sampler = MultiBlock3DSampler(grid=GRID, **{**kind, "context_share": 1.0, "target_share": 1.0})
    for mask, _ in draw(sampler, 10):
        for clip in range(8):
            context, targets = (
                mask.context[clip][mask.context_valid[clip]],
                mask.targets[clip][mask.targets_valid[clip]],
            )
            assert len(context) and len(targets)
            np.testing.assert_array_equal(np.sort(np.concatenate([context, targets])), np.arange(1568))


def test_clips_without_context_are_drawn_again():
    """Two blocks of 14x10 at the left and right cover everything."""
    sampler = MultiBlock3DSampler(grid=(1, 14, 14), num_blocks=2, scale=(0.7, 0.7), aspect=(1.45, 1.45))
    hidden = draw_hidden(sampler, 60, 16)[:, :, 0].reshape(-1, 14, 14)
    assert not hidden.all(axis=(1, 2)).any()
    widths = hidden.any(axis=1).sum(axis=1)
    assert hidden.any(axis=2).all() and set(widths) == {10, 11, 12, 13}
    # Of the 25 pairs of offsets two are out and five equal; without new draws a single block would make it 7 of 25.
    assert (widths == 10).mean() == pytest.approx(5 / 23, abs=0.03)


def test_one_of_very_many_blocks_is_left():
    sampler = MultiBlock3DSampler(grid=(1, 14, 14), num_blocks=500, scale=(0.7, 0.7))
    for hidden in draw_hidden(sampler, 4, 2).reshape(-1, 14, 14):
        assert box(hidden)[2:] in official_sizes((0.7, 0.7))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(num_blocks=0), "num_blocks"),
        (dict(scale=(0.3, 0.2)), "scale"),
        (dict(temporal_scale=(0.0, 1.0)), "temporal_scale"),
        (dict(aspect=(1.5, 0.75)), "aspect"),
        (dict(context_share=0.0), "context_share"),
        (dict(target_share=1.2), "target_share"),
        (dict(truncation="last"), "truncation"),
        (dict(scale=(0.15, 1.0)), "may cover the whole 14x14 grid"),
        (dict(grid=(8, 1, 1)), "may cover the whole 1x1 grid"),
    ],
)
def test_impossible_settings_are_refused(changes, match):
    with pytest.raises(ConfigError, match=match):
        MultiBlock3DSampler(**{"grid": GRID, **changes})


def test_a_block_may_cover_whole_frames_but_not_all_of_them():
    sampler = MultiBlock3DSampler(grid=(4, 2, 2), num_blocks=1, scale=(1.0, 1.0), temporal_scale=(0.5, 0.5))
    hidden = draw_hidden(sampler, 10, 2)
    assert set(hidden.sum(axis=(2, 3, 4)).ravel()) == {8}
