"""SimMIM with an encoder that embeds finer patches than it returns tokens for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mim_jax
from mim_jax import TokenMask
from mim_jax.errors import ConfigError
from mim_jax.layers.patches import unpatchify
from tests.models import swin_peer
from tests.tiny import clock, synthetic_batch

CONFIG = {**swin_peer.CONFIG, "mask_patch_size": 8}  # two by two output tokens, four by four patches


@pytest.fixture(scope="module")
def simmim():
    return mim_jax.create(CONFIG)


@pytest.fixture(scope="module")
def batch(simmim):
    return synthetic_batch(simmim, 4)


@pytest.fixture(scope="module")
def variables(simmim, batch):
    return jax.jit(lambda: simmim.init(jax.random.key(0), batch))()


@pytest.fixture(scope="module")
def mask(simmim, batch):
    return simmim.masks({}, batch, jax.random.key(5), clock())


@pytest.fixture(scope="module")
def loss(simmim):
    return jax.jit(lambda v, b, m: simmim.loss(v, b, m, None, clock()))


def hidden_pixels(mask):
    grid = np.asarray(mask.mask).reshape(-1, 12, 12)
    return np.repeat(np.repeat(grid, 2, axis=1), 2, axis=2)[..., None]


@pytest.mark.parametrize(
    ("file", "encoder", "head"),
    [("simmim_swin_b_in1k", 86_725_304, 3_148_800), ("simmim_swin_l_in1k", 195_159_540, 4_721_664)],
)
def test_parameter_counts_are_the_sheets(file, encoder, head):
    objective = mim_jax.create(mim_jax.load_config(f"configs/{file}.py"))
    params = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())["params"]
    count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    assert count == {"encoder": encoder, "head": head}
    masks = jax.eval_shape(
        lambda: objective.masks({}, {"image": jnp.zeros((2, 192, 192, 3))}, jax.random.key(0), clock())
    )
    assert masks.mask.shape == (2, 48 * 48) and masks.num_keep == (36 - 22) * 64


def test_whole_cells_are_hidden(mask):
    cells = np.asarray(mask.mask).reshape(4, 3, 4, 3, 4)
    assert (cells.all(axis=(2, 4)) == cells.any(axis=(2, 4))).all()
    assert (np.asarray(mask.mask).sum(axis=1) == 6 * 16).all()  # ceil(9 * 0.6) cells


def test_loss_is_the_absolute_error_of_hidden_pixels(simmim, variables, batch, mask, loss):
    value, aux = loss(variables, batch, mask)
    picture = np.asarray(unpatchify(aux["prediction"], (2, 2), (12, 12)))
    weight = hidden_pixels(mask).astype(np.float32)
    error = np.abs(picture - np.asarray(batch["image"])) * weight
    assert float(value) == pytest.approx(error.sum() / (weight.sum() + 1e-5) / 3, rel=1e-5)
    shown = jax.jit(simmim.reconstruct)(variables, batch, mask)
    np.testing.assert_allclose(shown["reconstruction"], np.where(weight, picture, batch["image"]), atol=1e-5)
    np.testing.assert_array_equal(shown["masked"], np.where(weight, 0.0, batch["image"]))


def test_a_constant_error_is_the_loss_whatever_is_predicted_elsewhere(simmim, variables, batch, mask):
    """Only the head's bias is left, so that all tokens predict one patch."""
    head = {**variables["params"]["head"], "kernel": jnp.zeros_like(variables["params"]["head"]["kernel"])}
    head["bias"] = jnp.full_like(head["bias"], 0.25)
    silent = {"params": {**variables["params"], "head": head}}
    weight = hidden_pixels(mask)
    flat = {"image": jnp.where(weight, 1.0, batch["image"])}
    value, _ = jax.jit(lambda: simmim.loss(silent, flat, mask, None, clock()))()
    assert float(value) == pytest.approx(0.75, rel=1e-5)


def test_prediction_does_not_depend_on_pixels_under_the_mask(variables, batch, mask, loss):
    noise = jax.random.normal(jax.random.key(9), batch["image"].shape)
    other = {"image": jnp.where(hidden_pixels(mask), noise, batch["image"])}
    (first, aux), (second, changed) = loss(variables, batch, mask), loss(variables, other, mask)
    np.testing.assert_array_equal(aux["prediction"], changed["prediction"])
    assert float(first) != float(second)


def test_with_everything_hidden_the_latent_is_the_same_for_every_image(variables, batch, loss):
    all_hidden = TokenMask.from_bool(np.ones((4, 144), bool), 0)
    _, aux = loss(variables, batch, all_hidden)
    np.testing.assert_allclose(aux["latent"], np.broadcast_to(aux["latent"][:1], aux["latent"].shape), atol=1e-6)


def test_encode_gives_the_output_tokens_and_their_mean(simmim, variables, batch):
    features = jax.jit(simmim.encode)(variables, batch["image"])
    assert features["tokens"].shape == (4, 36, 16)
    np.testing.assert_allclose(features["pooled"], features["tokens"].mean(axis=1), atol=1e-6)


def test_only_the_mask_token_norms_and_biases_are_exempt_from_decay():
    """The tables of relative positions are decayed, as in the official pre-training."""
    from mim_jax.training.paths import leaf_names, matches

    config = mim_jax.load_config("configs/simmim_swin_b_in1k.py")
    objective = mim_jax.create(config)
    params = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())["params"]
    exempt = jax.tree.leaves(matches(params, config.optimizer.no_decay, "optimizer.no_decay"))
    decayed = {n.split("/")[-1] for n, out in zip(leaf_names(params), exempt, strict=True) if not out}
    assert decayed == {"kernel", "table"}
    assert [n for n, out in zip(leaf_names(params), exempt, strict=True) if out and n.endswith("token")]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(image_size=26, mask_patch_size=2), "image_size 26x26 is not divisible by the 4x4 pixels"),
        (dict(mask_patch_size=3), "mask_patch_size"),
        (dict(mto=dict(enabled=True)), r"mto\.enabled"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, match):
    with pytest.raises(ConfigError, match=match):
        mim_jax.create({**CONFIG, **changes})


def test_there_are_two_recipes_for_swin_b():
    short, long = (mim_jax.load_config(f"configs/simmim_swin_b_in1k.py:{epochs}") for epochs in (100, 800))
    assert (short.schedule.name, short.optimizer.lr, short.duration) == ("cosine", 2e-4, "100 epochs")
    assert (long.schedule.name, long.optimizer.lr, long.duration) == ("step", 1e-4, "800 epochs")
    with pytest.raises(ConfigError, match="no recipe of '300' epochs"):
        mim_jax.load_config("configs/simmim_swin_b_in1k.py:300")
