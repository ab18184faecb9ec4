"""SelectiveMAE against a forward pass written here in PyTorch from the method sheet."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.masking.progressive import SelectedTokens
from mim_jax.models import vit
from mim_jax.training.duration import RunLength
from mim_jax.training.schedules import learning_rate_schedule, peak_learning_rate
from tests.interop import test_official_layouts as official
from tests.tiny import ROOT, clock

SIZE, PATCH, WIDTH, TOKENS = 16, official.PATCH, official.WIDTH, official.TOKENS
DECODER_WIDTH, DECODER_HEADS = 8, 2
LAYOUT = "MiliLab/SelectiveMAE"
TINY = dict(
    method="selectivemae",
    image_size=SIZE,
    model=dict(width=WIDTH, depth=official.DEPTH, heads=official.HEADS, patch_size=PATCH),
    decoder=dict(width=DECODER_WIDTH, depth=2, heads=DECODER_HEADS),
    mask_ratio=0.6,  # 6 of 16 patches: 3 drawn, 1 and 2 added
    kept_mask_ratio=0.3,  # 4 patches
)
KEY = jax.random.key(0)
RECIPE = str(ROOT / "configs" / "selectivemae_vit_b16_opticalrs4m.py")


def make(**config):
    return mim_jax.create({**TINY, **config})


def used_state():
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "mask_token": (1, 1, DECODER_WIDTH),
        **official.encoder_shapes(),
        **official.norm_shapes("decoder_norm", DECODER_WIDTH),
        **official.linear_shapes("decoder_pred", PATCH * PATCH * 3, DECODER_WIDTH),
    }
    for layer in range(2):
        block = f"decoder_blocks.{layer}"
        shapes |= {
            **official.norm_shapes(f"{block}.norm1", DECODER_WIDTH),
            **official.linear_shapes(f"{block}.cross_attn.q", DECODER_WIDTH, DECODER_WIDTH),
            **official.linear_shapes(f"{block}.cross_attn.kv", 2 * DECODER_WIDTH, WIDTH),
            **official.linear_shapes(f"{block}.cross_attn.proj", DECODER_WIDTH, DECODER_WIDTH),
            **official.norm_shapes(f"{block}.norm2", DECODER_WIDTH),
            **official.linear_shapes(f"{block}.mlp.fc1", 4 * DECODER_WIDTH, DECODER_WIDTH),
            **official.linear_shapes(f"{block}.mlp.fc2", DECODER_WIDTH, 4 * DECODER_WIDTH),
        }
    tables = {
        "pos_embed": official.sincos(WIDTH, True),
        "decoder_pos_embed": official.sincos(DECODER_WIDTH, True),
    }
    return official.random_state(shapes) | tables


def unused_state():
    """What an official checkpoint holds beside it."""
    shapes = {
        "pos_embed_probs": (1, TOKENS, WIDTH),
        **official.linear_shapes("decoder_embed1", DECODER_WIDTH, WIDTH),
        **official.norm_shapes("get_token_probs.0.norm1", WIDTH),
        "get_token_probs.0.attn.qkv.weight": (3 * WIDTH, WIDTH),
        **official.norm_shapes("get_token_probs.1", WIDTH),
        **official.linear_shapes("get_token_probs_linear", 1, WIDTH),
        "hog.weight_x": (3, 1, 3, 3),
        "hog.weight_y": (3, 1, 3, 3),
        "hog.gkern": (16, 16),
    }
    return official.random_state(shapes, seed=7)


@pytest.fixture(scope="module")
def state():
    return used_state()


@pytest.fixture(scope="module")
def variables(state):
    return mim_jax.import_weights(make(), {"model": state | unused_state(), "epoch": 799}, LAYOUT, strict=True)


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def selected():
    rng = np.random.default_rng(3)
    orders = np.stack([rng.permutation(TOKENS) for _ in range(3)]).astype(np.int32)
    return SelectedTokens(jnp.asarray(orders[:, :6]), jnp.asarray(np.sort(orders[:, 6:10], axis=1)))


def embedded(state, images):
    return official.embed(state, images) + state["pos_embed"][:, 1:]


def cross_attention(state, name, x, memory):
    q = official.linear(state, f"{name}.q", x)
    k, v = official.linear(state, f"{name}.kv", memory).chunk(2, dim=-1)
    q, k, v = (t.unflatten(-1, (DECODER_HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
    return official.linear(state, f"{name}.proj", (weights @ v).transpose(1, 2).flatten(2))


def patches_of(images):
    unfolded = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # B, C, rows, columns, p, p
    return unfolded.permute(0, 2, 3, 4, 5, 1).reshape(len(images), TOKENS, -1)


def reference(state, images, visible, predicted):
    """Latent, prediction, target and the loss of each sample: selectivemae.md, steps 6 to 8."""
    x = official.gather(embedded(state, images), visible)
    latent = official.norm(
        state, "norm", official.blocks(state, "blocks", official.with_class_token(state, x), official.HEADS)
    )
    positions = state["decoder_pos_embed"][:, 1:].expand(len(images), -1, -1)
    q = state["mask_token"] + official.gather(positions, predicted)
    for layer in range(2):
        block = f"decoder_blocks.{layer}"
        q = q + cross_attention(state, f"{block}.cross_attn", official.norm(state, f"{block}.norm1", q), latent)
        hidden = official.linear(state, f"{block}.mlp.fc1", official.norm(state, f"{block}.norm2", q))
        q = q + official.linear(state, f"{block}.mlp.fc2", F.gelu(hidden))
    prediction = official.linear(state, "decoder_pred", official.norm(state, "decoder_norm", q))
    target = official.gather(patches_of(images), predicted)
    variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
    target = (target - mean) / (variance + 1e-6).sqrt()
    return latent, prediction, target, (prediction - target).square().mean((1, 2))


def test_end_to_end(state, variables, images, selected, tmp_path):
    visible, predicted = (torch.from_numpy(np.array(ids)).long() for ids in selected)
    latent, prediction, target, losses = reference(state, images, visible, predicted)
    objective = make()
    loss, aux = jax.jit(objective.loss)(variables, official.as_batch(images), selected, KEY, clock())
    official.assert_equal(aux["latent"], latent)
    official.assert_equal(aux["prediction"], prediction)
    official.assert_equal(aux["target"], target)
    official.assert_equal(loss, losses.mean())
    assert set(aux["terms"]) == {"reconstruction"}
    official.assert_round_trip(objective, variables, LAYOUT, state, tmp_path)
    by_hand, _ = jax.jit(objective.loss)(variables, official.as_batch(images), tuple(selected), KEY, clock())
    assert by_hand == loss


def test_the_selection_sees_embedded_patches_with_their_positions(state, variables, images):
    objective = make()
    tokens = objective.embed(variables, official.as_batch(images)["image"])
    official.assert_equal(tokens, embedded(state, images))


def test_near_tokens_are_near_under_the_current_parameters(state, variables, images):
    objective, batch = make(), official.as_batch(images)
    masks = jax.jit(objective.masks)(variables, batch, KEY, clock())
    x = F.normalize(embedded(state, images), dim=-1)
    for row, ids in zip((x @ x.transpose(1, 2)).numpy(), np.asarray(masks.visible), strict=True):
        for before, after in ((3, 4), (4, 6)):
            nearest = row[:, ids[:before]].max(axis=1)
            rest = np.setdiff1d(np.arange(TOKENS), ids[:after])
            assert nearest[ids[before:after]].min() >= nearest[rest].max() - 1e-6
    other = mim_jax.import_weights(
        objective,
        official.random_state({k: v.shape for k, v in state.items() if not k.endswith("pos_embed")}, seed=11),
        LAYOUT,
    )
    changed = jax.jit(objective.masks)(other, batch, KEY, clock())
    np.testing.assert_array_equal(changed.visible[:, :3], masks.visible[:, :3])
    assert not np.array_equal(changed.visible, masks.visible)


def test_one_step_serves_the_whole_curriculum(variables, images):
    objective, batch = make(), official.as_batch(images)
    masks = jax.jit(objective.masks)
    stages = [masks(variables, batch, KEY, clock(step, 800)) for step in (0, 290, 400, 590, 700)]
    assert masks._cache_size() == 1
    near, _, far, _, random = (np.asarray(stage.visible).tobytes() for stage in stages)
    assert len({near, far, random}) == 3


def test_patches_that_are_neither_seen_nor_predicted_get_no_gradient(variables, images, selected):
    objective = make()

    def loss(pixels):
        return objective.loss(variables, {"image": pixels}, selected, KEY, clock())[0]

    gradient = jax.jit(jax.grad(loss))(official.as_batch(images)["image"])
    largest = np.abs(np.asarray(gradient)).reshape(3, 4, PATCH, 4, PATCH, 3).max(axis=(2, 4, 5)).reshape(3, TOKENS)
    for row, visible, predicted in zip(largest, selected.visible, selected.predicted, strict=True):
        touched = np.isin(np.arange(TOKENS), np.concatenate([visible, predicted]))
        assert (row[touched] > 0).all() and not row[~touched].any()


def test_pictures_show_what_was_seen_and_predicted_and_nothing_else(variables, images, selected):
    objective, batch = make(norm_pix_loss=False), official.as_batch(images)
    pictures = objective.reconstruct(variables, batch, selected)
    _, aux = objective.loss(variables, batch, selected, KEY, clock())
    cells = {
        name: patches_of(torch.from_numpy(np.array(p)).permute(0, 3, 1, 2)).numpy() for name, p in pictures.items()
    }
    for row in range(3):
        visible, predicted = (np.asarray(ids)[row] for ids in selected)
        untouched = np.setdiff1d(np.arange(TOKENS), np.concatenate([visible, predicted]))
        for name in ("masked", "reconstruction"):
            np.testing.assert_array_equal(cells[name][row, visible], cells["original"][row, visible])
            assert not cells[name][row, untouched].any()
        assert not cells["masked"][row, predicted].any()
        np.testing.assert_allclose(cells["reconstruction"][row, predicted], aux["prediction"][row], atol=1e-6)


def test_normalised_predictions_are_shown_with_the_true_statistics(variables, images, selected):
    objective, batch = make(), official.as_batch(images)
    picture = objective.reconstruct(variables, batch, selected)["reconstruction"]
    _, aux = objective.loss(variables, batch, selected, KEY, clock())
    ids = torch.from_numpy(np.array(selected.predicted)).long()
    shown = official.gather(patches_of(torch.from_numpy(np.array(picture)).permute(0, 3, 1, 2)), ids)
    variance, mean = torch.var_mean(official.gather(patches_of(images), ids), dim=-1, keepdim=True)
    expected = np.asarray(aux["prediction"]) * (variance + 1e-6).sqrt().numpy() + mean.numpy()
    np.testing.assert_allclose(shown.numpy(), expected, atol=1e-5)


def test_the_hog_score_prefers_patches_with_detail():
    objective = make(score="hog", selection="random")
    images = np.zeros((200, SIZE, SIZE, 3), np.float32)
    images[:, :, 8:] = 400.0 * np.random.default_rng(0).normal(size=(200, SIZE, 8, 3))
    masks = objective.masks({}, {"image": jnp.asarray(images)}, KEY, clock())
    assert (np.asarray(masks.visible) % 4 >= 2).mean() > 0.9
    uniform = make(selection="random").masks({}, {"image": jnp.asarray(images)}, KEY, clock())
    assert 0.4 < (np.asarray(uniform.visible) % 4 >= 2).mean() < 0.6


@pytest.mark.parametrize(
    ("sizes", "encoder", "total"),
    [
        (dict(depth=8), 85_647_360, 120_990_466 - 7_631_362),
        (dict(depth=12), 85_647_360, 134_648_578 - 7_631_362),
    ],
    ids=["script", "readme"],
)
def test_parameter_counts_are_the_sheets_without_what_is_unused(sizes, encoder, total):
    config = mim_jax.load_config(RECIPE)
    config.decoder.update(sizes)
    assert count_parameters(config) == (encoder, total)


@pytest.mark.parametrize(
    ("size", "decoder", "encoder", "total"),
    [
        ("S", dict(width=256, depth=2, heads=8), 21_590_016, 25_446_658 - 1_947_906),
        ("L", dict(width=512, depth=8, heads=16), 303_099_904, 346_229_506 - 13_320_706),
    ],
)
def test_other_sizes(size, decoder, encoder, total):
    config = mim_jax.load_config(RECIPE)
    config.model.update(vit.vit_size(size))
    config.decoder.update(decoder)
    assert count_parameters(config) == (encoder, total)


def count_parameters(config):
    objective = mim_jax.create(config)
    params = jax.eval_shape(objective.init, KEY, objective.batch_spec())["params"]
    counts = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    return counts["encoder"], sum(counts.values())


def test_the_recipe_touches_40_percent_of_the_patches_at_the_published_rate():
    config = mim_jax.load_config(RECIPE)
    objective = mim_jax.create(config)
    assert (objective.selector.num_visible, objective.selector.num_predicted) == (29, 49)
    assert objective.selector.additions == (7, 8)
    assert peak_learning_rate(config) == pytest.approx(3.529e-4, rel=1e-3)
    length = RunLength(4_000_000, config.batch_size)
    rate = learning_rate_schedule(config, length.steps(config.duration, "duration"), length)
    assert float(rate(jnp.int32(length.steps("10 epochs", "warmup")))) == pytest.approx(3.529e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(score="best"), "score is 'best'; choose one of uniform, hog"),
        (dict(selection="near"), "selection is 'near'"),
        (dict(mask_ratio=0.9), "mask_ratio 0.9 keeps 1 of 16"),
        (dict(kept_mask_ratio=0.7), "kept_mask_ratio 0.7"),
        (dict(curriculum=dict(far=5)), "curriculum.far 5"),
        (dict(decoder=dict(width=9, heads=2)), "decoder.width 9"),
        (dict(decoder=dict(depth=0)), "decoder.depth is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        make(**config)
