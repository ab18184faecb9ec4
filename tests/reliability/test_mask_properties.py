"""What holds for the masks of every family, at any size: counts, ranges, disjointness, and one result everywhere."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mim_jax import masking
from mim_jax.errors import ConfigError
from mim_jax.masking.attentive import attentive_mask
from mim_jax.masking.block import block_mask
from mim_jax.masking.color_noise import COLORS, color_noise, noise_mask
from mim_jax.masking.complementary import complementary_views
from mim_jax.masking.disjoint import DisjointMasks, random_disjoint_masks
from mim_jax.masking.disjoint_cells import DisjointCellSampler, DisjointViews
from mim_jax.masking.frequency import FrequencyFilter, low_pass
from mim_jax.masking.hard import hard_mask
from mim_jax.masking.mixed import random_owners
from mim_jax.masking.multiblock import MultiBlockSampler
from mim_jax.masking.multiblock3d import ClipMask, MultiBlock3DSampler
from mim_jax.masking.progressive import SelectedTokens, TokenSelector
from mim_jax.masking.random import check_cells, num_hidden_cells, random_cell_mask, random_mask
from mim_jax.masking.rectangles import RectangleSampler
from mim_jax.masking.redundancy import all_alive, drop_redundant
from mim_jax.masking.token_mask import TokenMask, num_kept, take_tokens
from tests.evaluation.meshes import mesh_of

PRIMES_AND_OTHERS = (1, 2, 3, 5, 7, 8, 13, 14, 16, 23)
RATIOS = st.one_of(st.sampled_from([0.5, 0.6, 0.75, 0.9]), st.floats(0.01, 0.99))
BATCHES = st.integers(1, 5)
KEYS = st.integers(0, 2**31 - 1)


@dataclasses.dataclass(frozen=True)
class Family:
    """A way to draw masks: what may be drawn, how, and what must then hold."""

    sizes: st.SearchStrategy  # of keyword arguments
    fixed: tuple[dict[str, Any], ...]  # a few of them, to be compiled
    sample: Callable[..., Any]  # (rng, batch, **sizes) -> masks
    check: Callable[..., None]  # (masks, batch, **sizes)


def check_token_mask(masks: TokenMask, batch: int, num_tokens: int, keep: int) -> None:
    mask, order = np.asarray(masks.mask), np.asarray(masks.order)
    everything = np.tile(np.arange(num_tokens), (batch, 1))
    assert (mask.dtype, order.dtype) == (bool, np.int32)
    assert masks.num_keep == keep and masks.ids_keep.shape == (batch, keep)
    assert mask.shape == (batch, num_tokens) and (mask.sum(axis=1) == num_tokens - keep).all()
    both = np.concatenate([masks.ids_keep, masks.ids_hidden], axis=1)
    np.testing.assert_array_equal(np.sort(both, axis=1), everything)  # disjoint, and together all
    np.testing.assert_array_equal(np.take_along_axis(order, np.asarray(masks.ids_restore), axis=1), everything)
    assert not np.take_along_axis(mask, np.asarray(masks.ids_keep), axis=1).any()


def check_cells_whole(masks: TokenMask, batch: int, grid: tuple, cell: tuple, mask_ratio: float) -> None:
    rows, columns = grid[0] // cell[0], grid[1] // cell[1]
    hidden = math.ceil(rows * columns * mask_ratio)
    check_token_mask(masks, batch, grid[0] * grid[1], (rows * columns - hidden) * cell[0] * cell[1])
    blocks = np.asarray(masks.mask).reshape(batch, rows, cell[0], columns, cell[1])
    assert (blocks.all(axis=(2, 4)) == blocks.any(axis=(2, 4))).all()


def check_blocks(masks: Any, batch: int, **sizes: Any) -> None:
    sampler = MultiBlockSampler(**sizes)
    height, width = sampler.grid
    assert len(masks.context) == 1 and len(masks.targets) == sampler.num_targets
    (context,), targets = map(np.asarray, masks.context), [np.asarray(ids) for ids in masks.targets]
    assert context.shape == (batch, sampler.context_tokens)
    for ids in (context, *targets):
        assert ids.dtype == np.int32 and ids.min() >= 0 and ids.max() < height * width
        assert (np.diff(ids, axis=1) > 0).all()  # rising, so none comes twice
        assert (ids // width < height - 1).all() and (ids % width < width - 1).all()
    for ids in targets:
        assert ids.shape == (batch, sampler.target_tokens)
        for row in ids:  # a rectangle in raster order: full rows, then part of one
            columns = np.ptp(row % width) + 1
            within = np.arange(len(row))
            np.testing.assert_array_equal(row, row[0] + within // columns * width + within % columns)
    if _largest_target(sampler) * sampler.num_targets + sampler.context_tokens <= _smallest_context(sampler):
        for image in range(batch):
            assert not set(context[image]) & {token for ids in targets for token in ids[image]}


def _largest_target(sampler: MultiBlockSampler) -> float:
    """A bound on the tokens of a target block, however its sides are rounded."""
    area = sampler.target_scale[1] * sampler.grid[0] * sampler.grid[1]
    return max((math.sqrt(area * r) + 0.5) * (math.sqrt(area / r) + 0.5) for r in sampler.target_aspect)


def _smallest_context(sampler: MultiBlockSampler) -> float:
    side = math.sqrt(math.floor(sampler.context_scale[0] * sampler.grid[0] * sampler.grid[1])) - 0.5
    return min(side, sampler.grid[0] - 1) * min(side, sampler.grid[1] - 1)


@st.composite
def tokens(draw) -> dict[str, Any]:
    sizes = dict(num_tokens=draw(st.integers(2, 400)), mask_ratio=draw(RATIOS))
    assume(0 < int(sizes["num_tokens"] * (1 - sizes["mask_ratio"])) < sizes["num_tokens"])
    return sizes


@st.composite
def cells(draw) -> dict[str, Any]:
    rows, columns = draw(st.sampled_from(PRIMES_AND_OTHERS)), draw(st.sampled_from(PRIMES_AND_OTHERS))
    cell = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    ratio = draw(RATIOS)
    assume(math.ceil(rows * columns * ratio) < rows * columns)
    return dict(grid=(rows * cell[0], columns * cell[1]), cell=cell, mask_ratio=ratio)


@st.composite
def multi_blocks(draw) -> dict[str, Any]:
    low = draw(st.sampled_from([0.05, 0.1, 0.15, 0.3, 0.7]))
    return dict(
        grid=(draw(st.sampled_from(PRIMES_AND_OTHERS[1:])), draw(st.sampled_from(PRIMES_AND_OTHERS[1:]))),
        num_targets=draw(st.integers(1, 4)),
        target_scale=(low, draw(st.sampled_from([low, low + 0.05, 1.0]))),
        target_aspect=draw(st.sampled_from([(0.75, 1.5), (1.0, 1.0), (0.2, 5.0)])),
        context_scale=draw(st.sampled_from([(0.85, 1.0), (0.5, 0.6), (1.0, 1.0)])),
        context_share=draw(st.floats(0.01, 1.0)),
        truncation=draw(st.sampled_from(["first", "random"])),
    )


@st.composite
def clip_blocks(draw) -> dict[str, Any]:
    low = draw(st.sampled_from([0.05, 0.15, 0.3, 0.6]))
    sides = st.sampled_from(PRIMES_AND_OTHERS[2:])
    return dict(
        grid=(draw(st.integers(1, 8)), draw(sides), draw(sides)),
        num_blocks=draw(st.integers(1, 8)),
        scale=(low, draw(st.sampled_from([low, low + 0.1]))),
        temporal_scale=draw(st.sampled_from([(1.0, 1.0), (0.3, 0.6)])),
        context_share=draw(st.floats(0.01, 1.0)),
        target_share=draw(st.floats(0.01, 1.0)),
        truncation=draw(st.sampled_from(["first", "random"])),
    )


def check_clip_blocks(masks: ClipMask, batch: int, **sizes: Any) -> None:
    sampler = MultiBlock3DSampler(**sizes)
    context, targets, context_valid, targets_valid = map(np.asarray, masks)
    for ids, valid, slots in (
        (context, context_valid, sampler.context_slots),
        (targets, targets_valid, sampler.target_slots),
    ):
        assert ids.shape == valid.shape == (batch, slots) and (ids.dtype, valid.dtype) == (np.int32, bool)
        assert valid[:, 0].all() and (np.diff(valid.astype(int), axis=1) <= 0).all()  # slots in use come first
    for clip in range(batch):
        seen, hidden = context[clip][context_valid[clip]], targets[clip][targets_valid[clip]]
        for ids in (seen, hidden):
            assert (np.diff(ids) > 0).all() and ids[0] >= 0 and ids[-1] < sampler.num_tubes
        assert not set(seen) & set(hidden)
        if not context_valid[clip, -1] and not targets_valid[clip, -1]:  # neither list was cut
            assert len(seen) + len(hidden) == sampler.num_tubes


@st.composite
def blocks(draw) -> dict[str, Any]:
    grid = (draw(st.sampled_from(PRIMES_AND_OTHERS[2:])), draw(st.sampled_from(PRIMES_AND_OTHERS[2:])))
    num_hidden = draw(st.integers(1, grid[0] * grid[1] - 1))
    return dict(grid=grid, num_hidden=num_hidden, min_block=draw(st.sampled_from([1, 4, 16])))


@st.composite
def colors(draw) -> dict[str, Any]:
    grid = (draw(st.sampled_from(PRIMES_AND_OTHERS[1:])), draw(st.sampled_from(PRIMES_AND_OTHERS)))
    color, keep = draw(st.sampled_from(COLORS)), draw(st.integers(1, grid[0] * grid[1] - 1))
    return dict(grid=grid, color=color, field=max(grid) + draw(st.integers(0, 9)), keep=keep)


def sample_color(rng: jax.Array, batch: int, grid: tuple, color: str, field: int, keep: int) -> TokenMask:
    return noise_mask(color_noise(rng, batch, grid, color, sigma=1.5, band=(0.5, 2.0), field=field), keep)


@st.composite
def hard_tokens(draw) -> dict[str, Any]:
    num_tokens = draw(st.integers(2, 200))
    keep = draw(st.integers(1, num_tokens - 1))
    return dict(num_tokens=num_tokens, keep=keep, num_hard=draw(st.integers(0, num_tokens - keep)))


def sample_hard(rng: jax.Array, batch: int, num_tokens: int, keep: int, num_hard: int) -> TokenMask:
    scores = jax.random.randint(jax.random.fold_in(rng, 1), (batch, num_tokens), 0, 9).astype(jnp.float32)
    return hard_mask(rng, scores, num_hard, keep)


@st.composite
def alive_tokens(draw) -> dict[str, Any]:
    num_tokens = draw(st.integers(1, 200))
    return dict(num_tokens=num_tokens, keep=draw(st.integers(1, num_tokens)))


def sample_alive(rng: jax.Array, batch: int, num_tokens: int, keep: int) -> TokenMask:
    features = jax.random.normal(rng, (batch, num_tokens, 8))
    return drop_redundant(features, all_alive(batch, num_tokens), keep)


@st.composite
def disjoint_tokens(draw) -> dict[str, Any]:
    keep = draw(st.integers(1, 100))
    return dict(num_tokens=2 * keep + draw(st.integers(0, 50)), num_keep=keep)


def check_disjoint_masks(masks: DisjointMasks, batch: int, num_tokens: int, num_keep: int) -> None:
    for view in (masks.view1, masks.view2):
        check_token_mask(view, batch, num_tokens, num_keep)
    assert (np.asarray(masks.view1.mask) | np.asarray(masks.view2.mask)).all()  # none is visible twice


@st.composite
def disjoint_cells(draw) -> dict[str, Any]:
    rows, columns = (draw(st.sampled_from((3, 5, 7, 8, 13))) for _ in range(2))
    cell = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    grid = (rows * cell[0], columns * cell[1])
    return dict(grid=grid, cell=cell, mask_ratio=draw(st.sampled_from([0.5, 0.6, 0.75])))


def check_disjoint_views(views: DisjointViews, batch: int, **sizes: Any) -> None:
    sampler = DisjointCellSampler(**sizes)
    (height, width), (ch, cw) = sampler.grid, sampler.cell
    for view in views:
        check_token_mask(view, batch, height * width, sampler.visible_cells * ch * cw)
        blocks = np.asarray(view.mask).reshape(batch, height // ch, ch, width // cw, cw)
        assert (blocks.all(axis=(2, 4)) == blocks.any(axis=(2, 4))).all()


@st.composite
def complementary_tokens(draw) -> dict[str, Any]:
    return dict(num_views=draw(st.integers(1, 6)), keep=draw(st.integers(1, 60)))


def sample_complementary(rng: jax.Array, batch: int, num_views: int, keep: int) -> TokenMask:
    noise = jax.random.uniform(rng, (batch, num_views * keep), jnp.float32)
    return complementary_views(TokenMask.from_noise(noise, keep))


def check_complementary_views(views: TokenMask, batch: int, num_views: int, keep: int) -> None:
    check_token_mask(views, batch * num_views, num_views * keep, keep)
    shown = (~np.asarray(views.mask)).reshape(batch, num_views, num_views * keep)
    assert (shown.sum(axis=1) == 1).all()  # every token in one view of its image


@st.composite
def groups(draw) -> dict[str, Any]:
    group_size = draw(st.integers(1, 6))
    return dict(num_patches=group_size * draw(st.integers(1, 60)), group_size=group_size)


def check_owners(owners: jax.Array, batch: int, num_patches: int, group_size: int) -> None:
    assert owners.shape == (batch, num_patches) and owners.dtype == np.int32
    for row in np.asarray(owners):
        np.testing.assert_array_equal(np.bincount(row, minlength=group_size), num_patches // group_size)


@st.composite
def selections(draw) -> dict[str, Any]:
    return dict(num_tokens=draw(st.integers(20, 300)), mask_ratio=draw(st.sampled_from([0.5, 0.75, 0.85])))


def sample_selection(rng: jax.Array, batch: int, num_tokens: int, mask_ratio: float) -> SelectedTokens:
    selector = TokenSelector(num_tokens, mask_ratio, selection="random")
    return selector(rng, jnp.zeros((batch, num_tokens), jnp.float32), None, 0)


def check_selection(selected: SelectedTokens, batch: int, num_tokens: int, mask_ratio: float) -> None:
    visible, predicted = map(np.asarray, selected)
    assert visible.shape == (batch, int(num_tokens * (1 - mask_ratio)))
    assert predicted.shape == (batch, int(num_tokens * 0.25)) and (np.diff(predicted, axis=1) > 0).all()
    for row in np.concatenate([visible, predicted], axis=1):
        assert len(set(row)) == len(row) and row.min() >= 0 and row.max() < num_tokens


@st.composite
def frequencies(draw) -> dict[str, Any]:
    size = (draw(st.integers(4, 40)), draw(st.integers(4, 40)))
    return dict(image_size=size, radius=draw(st.floats(1.0, min(size) / 2)))


def check_frequencies(kept: jax.Array, batch: int, image_size: tuple, radius: float) -> None:
    low = low_pass(image_size, radius)
    assert kept.shape == (batch, *image_size) and kept.dtype == bool
    assert all((row == low).all() or (row != low).all() for row in np.asarray(kept))


@st.composite
def rectangles(draw) -> dict[str, Any]:
    grid = (draw(st.sampled_from(PRIMES_AND_OTHERS[2:])), draw(st.sampled_from(PRIMES_AND_OTHERS[2:])))
    spread = draw(st.sampled_from([0.0, 0.1]))
    return dict(
        grid=grid,
        mask_ratio=draw(st.sampled_from([0.4, 0.5, 0.6, 0.75])),
        mask_ratio_spread=spread,
        max_rectangle=draw(st.sampled_from([0.1, 0.3, 1.0])),
    )


def check_rectangles(masks: TokenMask, batch: int, grid: tuple, mask_ratio: float, **sizes: Any) -> None:
    num_tokens, spread = grid[0] * grid[1], sizes.get("mask_ratio_spread", 0.0)
    if spread == 0.0:
        check_token_mask(masks, batch, num_tokens, int(num_tokens * (1 - mask_ratio)))
        return
    hidden = np.asarray(masks.mask).sum(axis=1)
    assert masks.num_keep is None and masks.mask.shape == (batch, num_tokens)
    assert (np.abs(hidden / num_tokens - mask_ratio) <= spread + 0.5 / num_tokens + 1e-6).all()
    kept_first = np.take_along_axis(np.asarray(masks.mask), np.asarray(masks.order), axis=1)
    assert (np.diff(kept_first.astype(int), axis=1) >= 0).all()


def sample_attentive(rng: jax.Array, batch: int, num_tokens: int, keep: int) -> TokenMask:
    importance = jax.random.randint(jax.random.fold_in(rng, 1), (batch, num_tokens), 0, 9).astype(jnp.float32)
    return attentive_mask(rng, importance, keep)


@st.composite
def attended_tokens(draw) -> dict[str, Any]:
    num_tokens = draw(st.integers(1, 300))
    return dict(num_tokens=num_tokens, keep=draw(st.integers(1, num_tokens)))


FAMILIES = {
    "attentive_mask": Family(
        attended_tokens(),
        (dict(num_tokens=196, keep=58), dict(num_tokens=13, keep=13)),
        sample_attentive,
        lambda masks, batch, num_tokens, keep: check_token_mask(masks, batch, num_tokens, keep),
    ),
    "RectangleSampler": Family(
        rectangles(),
        (dict(grid=(14, 14)), dict(grid=(7, 5), mask_ratio=0.6, mask_ratio_spread=0.1)),
        lambda rng, batch, **sizes: RectangleSampler(**sizes)(rng, batch),
        lambda masks, batch, **sizes: check_rectangles(masks, batch, **{"mask_ratio": 0.6, **sizes}),
    ),
    "random_disjoint_masks": Family(
        disjoint_tokens(),
        (dict(num_tokens=196, num_keep=49), dict(num_tokens=2, num_keep=1)),
        lambda rng, batch, **sizes: random_disjoint_masks(rng, batch, **sizes),
        check_disjoint_masks,
    ),
    "DisjointCellSampler": Family(
        disjoint_cells(),
        (dict(grid=(14, 14)), dict(grid=(7, 5), cell=(1, 1), mask_ratio=0.75)),
        lambda rng, batch, **sizes: DisjointCellSampler(**sizes)(rng, batch),
        check_disjoint_views,
    ),
    "complementary_views": Family(
        complementary_tokens(),
        (dict(num_views=4, keep=49), dict(num_views=3, keep=1)),
        sample_complementary,
        check_complementary_views,
    ),
    "random_owners": Family(
        groups(),
        (dict(num_patches=196, group_size=4), dict(num_patches=3, group_size=3)),
        lambda rng, batch, **sizes: random_owners(rng, batch, **sizes),
        check_owners,
    ),
    "TokenSelector": Family(
        selections(),
        (dict(num_tokens=196, mask_ratio=0.85), dict(num_tokens=23, mask_ratio=0.5)),
        sample_selection,
        check_selection,
    ),
    "FrequencyFilter": Family(
        frequencies(),
        (dict(image_size=(224, 224), radius=16.0), dict(image_size=(7, 12), radius=2.0)),
        lambda rng, batch, **sizes: FrequencyFilter(**sizes).draw(rng, batch),
        check_frequencies,
    ),
    "color_noise": Family(
        colors(),
        (dict(grid=(14, 14), color="green", field=64, keep=49), dict(grid=(2, 7), color="red", field=7, keep=3)),
        sample_color,
        lambda masks, batch, grid, color, field, keep: check_token_mask(masks, batch, grid[0] * grid[1], keep),
    ),
    "hard_mask": Family(
        hard_tokens(),
        (dict(num_tokens=196, keep=49, num_hard=73), dict(num_tokens=13, keep=6, num_hard=0)),
        sample_hard,
        lambda masks, batch, num_tokens, keep, num_hard: check_token_mask(masks, batch, num_tokens, keep),
    ),
    "drop_redundant": Family(
        alive_tokens(),
        (dict(num_tokens=196, keep=167), dict(num_tokens=13, keep=6)),
        sample_alive,
        lambda masks, batch, num_tokens, keep: check_token_mask(masks, batch, num_tokens, keep),
    ),
    "random_mask": Family(
        tokens(),
        (dict(num_tokens=196, mask_ratio=0.75), dict(num_tokens=13, mask_ratio=0.5)),
        lambda rng, batch, **sizes: random_mask(rng, batch, **sizes),
        lambda masks, batch, num_tokens, mask_ratio: check_token_mask(
            masks, batch, num_tokens, int(num_tokens * (1 - mask_ratio))
        ),
    ),
    "random_cell_mask": Family(
        cells(),
        (
            dict(grid=(14, 14), cell=(2, 2), mask_ratio=0.6),
            dict(grid=(1, 7), cell=(1, 1), mask_ratio=0.5),
            dict(grid=(23, 1), cell=(1, 1), mask_ratio=0.3),
        ),
        lambda rng, batch, **sizes: random_cell_mask(rng, batch, **sizes),
        check_cells_whole,
    ),
    "MultiBlock3DSampler": Family(
        clip_blocks(),
        (
            dict(grid=(8, 14, 14)),
            dict(grid=(1, 7, 7), num_blocks=2, scale=(0.7, 0.7), truncation="random"),
            dict(grid=(4, 5, 7), temporal_scale=(0.5, 0.5), context_share=1.0, target_share=1.0),
        ),
        lambda rng, batch, **sizes: MultiBlock3DSampler(**sizes)(rng, batch),
        check_clip_blocks,
    ),
    "block_mask": Family(
        blocks(),
        (dict(grid=(14, 14), num_hidden=98), dict(grid=(5, 7), num_hidden=12, min_block=4)),
        lambda rng, batch, **sizes: block_mask(rng, batch, **sizes),
        lambda masks, batch, grid, num_hidden, **_: check_token_mask(
            masks, batch, grid[0] * grid[1], grid[0] * grid[1] - num_hidden
        ),
    ),
    "MultiBlockSampler": Family(
        multi_blocks(),
        (dict(grid=(14, 14)), dict(grid=(2, 23), truncation="random"), dict(grid=(7, 5), num_targets=2)),
        lambda rng, batch, **sizes: MultiBlockSampler(**sizes)(rng, batch),
        check_blocks,
    ),
}
# What the families are made of; each has its own properties below or is a plain container.
PARTS = {"Windows", "cut_windows", "draw_windows", "gaussian_response", "load_stack", "noise_mask"} | {
    "TokenMask",
    "BlockMasks",
    "ClipMask",
    "take_tokens",
    "num_kept",
    "num_hidden_cells",
    "check_cells",
    "tokens_per_cell",
    "Visible",
    *("DisjointMasks", "check_disjoint", "DisjointViews"),
    *("check_complementary", "first_views_first"),
    *("MixedMask", "join_groups", "part_groups", "check_groups"),
    *("SelectedTokens", "Curriculum", "choose_ranks", "draw", "patch_scores", "gradient_magnitude", "gaussian_window"),
    *("low_pass", "keep_frequencies", "Downsampling", "GaussianBlur", "GaussianNoise"),
    *("all_alive", "places_within", "redundancy", "take_alive"),
    *("Corruption", "CorruptedViews", "corrupt", "other_images", "two_views"),
}
FIXED = [(name, sizes) for name, family in FAMILIES.items() for sizes in family.fixed]


def test_every_family_is_enrolled():
    public = set()
    for module in pkgutil.iter_modules(masking.__path__):
        module = importlib.import_module(f"mim_jax.masking.{module.name}")
        public |= {
            name
            for name, value in vars(module).items()
            if not name.startswith("_")
            and (inspect.isfunction(value) or inspect.isclass(value))
            and value.__module__ == module.__name__
        }
    assert public == set(FAMILIES) | PARTS


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_invariants_at_any_size(name: str, data: st.DataObject):
    family, seed, batch = FAMILIES[name], data.draw(KEYS), data.draw(BATCHES)
    sizes = data.draw(family.sizes)
    masks = _jitted(name, batch, tuple(sizes.items()))(jax.random.key(seed))
    family.check(masks, batch, **sizes)


def _jitted(name: str, batch: int, sizes: tuple, **options: Any) -> Callable[[jax.Array], Any]:
    return jax.jit(functools.partial(FAMILIES[name].sample, batch=batch, **dict(sizes)), **options)


@pytest.mark.parametrize(("name", "sizes"), FIXED)
def test_eager_jit_vmap_and_eight_devices_agree_bit_for_bit(name: str, sizes: dict):
    family, batch = FAMILIES[name], 16
    draw = _jitted(name, batch, tuple(sizes.items()))
    over_devices = _jitted(
        name, batch, tuple(sizes.items()), out_shardings=NamedSharding(mesh_of(8), P(("data", "fsdp")))
    )
    keys = jax.random.split(jax.random.key(11), 3)
    together = jax.vmap(functools.partial(family.sample, batch=batch, **sizes))(keys)
    different = set()
    for number, key in enumerate(keys):
        masks = family.sample(key, batch, **sizes)
        family.check(masks, batch, **sizes)
        for other in (draw(key), draw(key), over_devices(key), jax.tree.map(lambda x, i=number: x[i], together)):
            jax.tree.map(np.testing.assert_array_equal, masks, other)
        different.add(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(masks)))
    assert len(different) == len(keys)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 5)),
    st.data(),
)
def test_from_noise_and_from_bool_are_one_mask(noise: np.ndarray, data: st.DataObject):
    batch, size = noise.shape
    keep = data.draw(st.integers(0, size))
    by_noise = TokenMask.from_noise(jnp.asarray(noise), keep)
    check_token_mask(by_noise, batch, size, keep)
    np.testing.assert_array_equal(by_noise.ids_keep, np.argsort(noise, axis=1, kind="stable")[:, :keep])
    by_bool = TokenMask.from_bool(by_noise.mask)
    check_token_mask(by_bool, batch, size, keep)
    np.testing.assert_array_equal(by_bool.mask, by_noise.mask)
    np.testing.assert_array_equal(by_bool.ids_keep, np.sort(by_noise.ids_keep, axis=1))
    again = TokenMask.from_noise(by_bool.mask.astype(jnp.float32), keep)
    jax.tree.map(np.testing.assert_array_equal, by_bool, again)
    values = np.arange(batch * size * 2, dtype=np.float32).reshape(batch, size, 2)
    np.testing.assert_array_equal(
        by_noise.restore(by_noise.keep(jnp.asarray(values)), jnp.full(2, -1.0, jnp.float32)),
        np.where(np.asarray(by_noise.mask)[..., None], np.float32(-1), values),
    )
    np.testing.assert_array_equal(take_tokens(jnp.asarray(values), by_noise.order)[0], values[0][by_noise.order[0]])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(0, 2000), st.floats(allow_nan=True, allow_infinity=True))
def test_counts_are_possible_or_refused(size: int, ratio: float):
    for count, result in ((num_kept, lambda n: n), (num_hidden_cells, lambda n: size - n)):
        try:
            visible = result(count(size, ratio))
        except ConfigError as error:
            assert "mask_ratio" in str(error) and str(ratio) in str(error)
        else:
            assert 0 < visible < size and abs(visible - size * (1 - ratio)) <= 1.0


@given(st.tuples(st.integers(0, 40), st.integers(0, 40)), st.tuples(st.integers(-1, 5), st.integers(-1, 5)))
def test_cells_tile_or_are_refused(grid: tuple[int, int], cell: tuple[int, int]):
    try:
        rows, columns = check_cells(grid, cell)
    except ConfigError as error:
        assert f"{cell[0]}x{cell[1]}" in str(error) and f"{grid[0]}x{grid[1]}" in str(error)
    else:
        assert (rows * cell[0], columns * cell[1]) == grid


@pytest.mark.parametrize("grid", [(1, 7), (7, 1), (1, 1)])
def test_a_line_of_patches_has_no_blocks(grid: tuple[int, int]):
    with pytest.raises(ConfigError, match=f"{grid[0]}x{grid[1]}"):
        MultiBlockSampler(grid=grid)
