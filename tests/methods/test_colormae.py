"""ColorMAE: parity with MAE's forward in mmpretrain's layout under the official sampler, and the sheet's checks."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import mim_jax
from mim_jax import TokenMask
from mim_jax.errors import ConfigError
from mim_jax.masking import color_noise
from mim_jax.masking.color_noise import Windows, cut_windows, noise_mask
from tests.interop import test_official_layouts as official
from tests.masking.test_color_noise import official_sampler
from tests.tiny import ROOT, clock

LAYOUT = "carlosh93/ColorMAE"
TINY = dict(
    method="colormae",
    image_size=16,
    model=dict(width=16, depth=2, heads=4, patch_size=4),
    decoder=dict(width=8, depth=1, heads=2),
    noise=dict(field=16),
)
KEY = jax.random.key(0)


def create(**noise):
    return mim_jax.create({**TINY, "noise": {**TINY["noise"], **noise}})


@pytest.fixture(scope="module")
def colormae():
    return create()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def swap_halves(table):
    first, second = table.chunk(2, dim=-1)
    return torch.cat([second, first], dim=-1)


@pytest.fixture(scope="module")
def state():
    """MAE's weights with mmpretrain's tables, under MAE's names."""
    state = official.mae_state()
    return {name: swap_halves(tensor) if "pos_embed" in name else tensor for name, tensor in state.items()}


def mmpretrain_name(name):
    part = "neck." if name.startswith(("decoder_", "mask_token")) else "backbone."
    for pattern, new in (
        (r"^blocks\.", "layers."),
        (r"\.norm([12])\.", r".ln\1."),
        (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
        (r"\.mlp\.fc2\.", ".ffn.layers.1."),
        (r"^(decoder_)?norm\.", "ln1."),
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
    ):
        name = re.sub(pattern, new, name)
    return part + name


@pytest.fixture(scope="module")
def checkpoint(state):
    return {mmpretrain_name(name): tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def variables(colormae, checkpoint):
    return mim_jax.import_weights(colormae, {"meta": {"epoch": 300}, "state_dict": checkpoint}, LAYOUT, strict=True)


def test_loss_under_the_official_sampler(colormae, variables, state, images, tmp_path):
    stack = torch.randn(2, 9, 9, generator=torch.Generator().manual_seed(2))
    passes = [(1, 5, True, False), (4, 0, False, True)]
    ids_keep, ids_restore = official_sampler(stack, passes, batch=3, window=4, keep=4)
    top, left, flip_columns, flip_rows = (np.array(x) for x in zip(*(passes[i] for i in (0, 0, 1)), strict=True))
    windows = Windows(np.array([0, 1, 0]), top, left, flip_columns, flip_rows)
    masks = noise_mask(cut_windows(jnp.asarray(stack.numpy()), windows, (4, 4)), 4)
    np.testing.assert_array_equal(masks.ids_keep, ids_keep)
    rank = ids_restore.float()  # the reference sorts again, in the same order
    latent, prediction, expected = official.mae_reference(state, images, rank, keep=4)
    loss, aux = jax.jit(colormae.loss)(variables, official.as_batch(images), masks, KEY, clock())
    official.assert_equal(aux["latent"], latent)
    official.assert_equal(aux["prediction"], prediction)
    official.assert_equal(loss, expected)


def test_files_round_trip(colormae, variables, checkpoint, tmp_path):
    official.assert_round_trip(colormae, variables, LAYOUT, checkpoint, tmp_path)


def test_tables_with_the_columns_first_are_refused(checkpoint):
    objective = mim_jax.create({**TINY, "model": {**TINY["model"], "position": "sincos"}})
    with pytest.raises(mim_jax.errors.WeightsError, match=r"differs by .* from the constant it is here"):
        mim_jax.import_weights(objective, checkpoint, LAYOUT)


def test_tables_of_another_grid_are_computed_anew(checkpoint, state):
    objective = mim_jax.create({**TINY, "image_size": 24})
    variables = mim_jax.import_weights(objective, checkpoint, LAYOUT, resize_positions=True)
    np.testing.assert_array_equal(variables["params"]["encoder"]["class_token"], state["cls_token"][0, 0])


def test_loss_and_gradients_are_maes(colormae, variables, images):
    config = {key: TINY[key] for key in ("image_size", "decoder")}
    mae = mim_jax.create({**config, "method": "mae", "model": {**TINY["model"], "position": "sincos_rows_first"}})
    masks = jax.jit(colormae.masks)(variables, official.as_batch(images), KEY, clock())
    (ours, gradients), (theirs, expected) = (
        jax.jit(jax.value_and_grad(lambda v, o=o: o.loss(v, official.as_batch(images), masks, KEY, clock())[0]))(
            variables
        )
        for o in (colormae, mae)
    )
    np.testing.assert_array_equal(ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, gradients, expected)


def test_parameter_counts_are_the_sheets():
    objective = mim_jax.create(mim_jax.load_config(str(ROOT / "configs" / "colormae_vit_b16_in1k.py")))
    params = jax.eval_shape(objective.init, KEY, objective.batch_spec())["params"]
    tables = 197 * (768 + 512)  # which are no parameters here
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) + tables == 111_907_840


@pytest.mark.parametrize("color", color_noise.COLORS)
def test_every_colour_hides_exactly_the_ratio(color):
    objective = mim_jax.create(dict(method="colormae", noise=dict(colors=(color,))))
    masks = jax.jit(lambda: objective.masks({}, objective_batch(5), KEY, clock()))()
    assert masks.ids_keep.shape == (5, 49)
    assert (np.asarray(masks.mask).sum(axis=1) == 147).all()
    assert len({row.tobytes() for row in np.asarray(masks.mask)}) == 5


def objective_batch(size):
    return {"image": jax.ShapeDtypeStruct((size, 224, 224, 3), jnp.float32)}


def masks_at(objective, epoch):
    at = mim_jax.Clock(step=jnp.int32(0), epoch=jnp.float32(epoch), progress=jnp.float32(0.5))
    batch = {"image": jax.ShapeDtypeStruct((6, 16, 16, 3), jnp.float32)}
    return np.asarray(jax.jit(lambda at: objective.masks({}, batch, KEY, at))(at).order)


def test_colours_follow_one_another(colormae):
    changing = create(colors=("green", "red", "blue"), epochs=(0, 200, 250))
    for epoch, color in (
        (0.0, "green"),
        (199.9, "green"),
        (200.0, "red"),
        (249.0, "red"),
        (250.0, "blue"),
        (900.0, "blue"),
    ):
        np.testing.assert_array_equal(masks_at(changing, epoch), masks_at(create(colors=(color,)), 0.0))
    assert not np.array_equal(masks_at(changing, 0.0), masks_at(changing, 200.0))


def test_stored_noise_is_cut_in_groups(tmp_path):
    stack = np.random.default_rng(0).normal(size=(3, 9, 9)).astype(np.float32)
    np.savez(tmp_path / "noise.npz", stack)
    objective = create(colors=(str(tmp_path / "noise.npz"),), group=2)
    order = masks_at(objective, 0.0)

    def ranks(top, left, flip_columns, flip_rows):
        window = stack[:2, top : top + 4, left : left + 4]
        window = window[:, :, ::-1] if flip_columns else window
        window = window[:, ::-1] if flip_rows else window
        return np.asarray(TokenMask.from_noise(jnp.asarray(-window.reshape(2, 16)), 4).order)

    everything = [ranks(t, k, c, r) for t in range(6) for k in range(6) for c in (0, 1) for r in (0, 1)]
    for group in np.split(order, 3):
        assert any(np.array_equal(group, possible) for possible in everything)


@pytest.mark.parametrize(
    ("noise", "match"),
    [
        (dict(colors=("gren",)), r"noise\.colors has 'gren'; choose white"),
        (dict(colors=("nowhere.npz",)), r"nowhere\.npz"),
        (dict(colors=("green", "red")), "equally long"),
        (dict(colors=("green", "red"), epochs=(5, 9)), "must begin in epoch 0"),
        (dict(colors=("green", "red"), epochs=(0, 0)), "must rise"),
        (dict(colors=(), epochs=()), "equally long"),
        (dict(field=3), r"noise\.field is 3"),
        (dict(band=(2.0, 0.5)), r"noise\.band"),
        (dict(sigma=0.0), r"noise\.sigma is 0\.0"),
        (dict(group=0), r"noise\.group is 0"),
    ],
)
def test_bad_values_are_refused(noise, match):
    with pytest.raises(ConfigError, match=match):
        create(**noise)
