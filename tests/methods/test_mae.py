import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mim_jax
from mim_jax import TokenMask
from mim_jax.errors import ConfigError
from mim_jax.targets.pixels import pixel_target
from mim_jax.training.paths import leaf_names
from tests.tiny import clock, synthetic_batch

TINY = dict(
    method="mae",
    image_size=16,
    model=dict(width=16, depth=2, heads=2, patch_size=4),
    decoder=dict(width=8, depth=1, heads=2),
)


@pytest.fixture(scope="module")
def mae():
    return mim_jax.create(TINY)


@pytest.fixture(scope="module")
def batch(mae):
    return synthetic_batch(mae, 4)


@pytest.fixture(scope="module")
def variables(mae, batch):
    return jax.jit(lambda: mae.init(jax.random.key(0), batch))()


@pytest.fixture(scope="module")
def mask():
    return TokenMask.from_noise(jax.random.uniform(jax.random.key(3), (4, 16)), 4)


@pytest.fixture(scope="module")
def loss(mae):
    return jax.jit(lambda v, b, m: mae.loss(v, b, m, jax.random.key(0), clock()))


def hidden_pixels(mask):
    """Bool [B, H, W, 1]: pixels of hidden patches."""
    grid = np.asarray(mask.mask).reshape(-1, 4, 4)
    return np.repeat(np.repeat(grid, 4, axis=1), 4, axis=2)[..., None]


@pytest.mark.parametrize(
    ("size", "encoder", "decoder"),
    [
        (dict(width=768, depth=12, heads=12, patch_size=16), 85_647_360, 26_008_320),
        (dict(width=1024, depth=24, heads=16, patch_size=16), 303_099_904, 26_139_392),
        (dict(width=1280, depth=32, heads=16, patch_size=14), 630_435_840, 26_178_124),
    ],
    ids=["B", "L", "H"],
)
def test_parameter_counts_are_the_sheets(size, encoder, decoder):
    objective = mim_jax.create(dict(method="mae", model=size))
    params = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())["params"]
    count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    assert count == {"encoder": encoder, "decoder": decoder}


def test_position_tables_are_no_parameters(variables):
    assert not [name for name in leaf_names(variables["params"]) if "position" in name]


def test_loss_ignores_predictions_of_visible_patches(mae, variables, batch, mask, loss):
    _, aux = loss(variables, batch, mask)
    error = jnp.square(aux["prediction"] - aux["target"]).mean(axis=-1)
    expected = np.asarray(error)[np.asarray(mask.mask)].mean()
    np.testing.assert_allclose(loss(variables, batch, mask)[0], expected, rtol=1e-6)


def test_raw_target_of_a_constant_image_and_zero_prediction_gives_one(mask):
    objective = mim_jax.create({**TINY, "norm_pix_loss": False})
    batch = {"image": jnp.ones((4, 16, 16, 3))}
    variables = jax.jit(lambda: objective.init(jax.random.key(0), batch))()
    head = variables["params"]["decoder"]["prediction"]
    variables["params"]["decoder"]["prediction"] = jax.tree.map(jnp.zeros_like, head)
    value, _ = jax.jit(objective.loss)(variables, batch, mask, jax.random.key(0), clock())
    assert float(value) == pytest.approx(1.0)


def test_latent_does_not_depend_on_hidden_pixels(variables, batch, mask, loss):
    noise = jax.random.normal(jax.random.key(9), batch["image"].shape)
    other = {"image": jnp.where(hidden_pixels(mask), noise, batch["image"])}
    _, aux = loss(variables, batch, mask)
    _, changed = loss(variables, other, mask)
    np.testing.assert_array_equal(aux["latent"], changed["latent"])
    assert not np.allclose(aux["target"], changed["target"])


def test_permuting_the_kept_tokens_permutes_the_latent(mae, variables, batch, mask):
    encode = jax.jit(
        lambda ids: mae.encoder.apply({"params": variables["params"]["encoder"]}, batch["image"], ids_keep=ids)
    )
    order = np.array([2, 0, 3, 1])
    latent, permuted = encode(mask.ids_keep), encode(mask.ids_keep[:, order])
    np.testing.assert_allclose(permuted[:, 1:], latent[:, 1:][:, order], rtol=1e-4, atol=1e-5)


def test_kept_count_truncates():
    objective = mim_jax.create(dict(method="mae", mask_ratio=0.6))
    masks = jax.eval_shape(objective.masks, {}, objective.batch_spec(2), jax.random.key(0), clock())
    assert masks.num_keep == 78


def test_reconstruction_keeps_visible_patches_and_grays_the_masked(mae, variables, batch, mask):
    pictures = jax.jit(mae.reconstruct)(variables, batch, mask)
    hidden = np.broadcast_to(hidden_pixels(mask), batch["image"].shape)
    np.testing.assert_allclose(np.where(hidden, 0, pictures["reconstruction"] - batch["image"]), 0, atol=1e-6)
    assert (np.asarray(pictures["masked"])[hidden] == 0).all()
    assert not np.allclose(np.asarray(pictures["reconstruction"])[hidden], 0)


def test_a_perfect_prediction_reconstructs_the_image(mae, variables, batch, mask, monkeypatch):
    target = pixel_target(batch["image"], (4, 4), True)
    monkeypatch.setattr(type(mae), "_forward", lambda self, v, images, masks, rng: (None, target))
    pictures = mae.reconstruct(variables, batch, mask)
    np.testing.assert_allclose(pictures["reconstruction"], batch["image"], atol=1e-4)


def test_non_square_images_and_any_channels():
    objective = mim_jax.create({**TINY, "image_size": (8, 24), "channels": 2})
    batch = synthetic_batch(objective, 2)
    variables = jax.jit(lambda: objective.init(jax.random.key(0), batch))()
    masks = objective.masks(variables, batch, jax.random.key(1), clock())
    pictures = jax.jit(objective.reconstruct)(variables, batch, masks)
    assert pictures["reconstruction"].shape == (2, 8, 24, 2)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"image_size": 18}, "image_size 18x18"),
        ({"model": {**TINY["model"], "heads": 3}}, r"model\.width 16"),
        ({"decoder": {"heads": 3, "width": 8}}, r"decoder\.width 8"),
        ({"compute": {"attention": "flash"}}, r"compute\.attention"),
        ({"compute": {"dtype": "float16"}}, r"compute\.dtype"),
        ({"model": {**TINY["model"], "position": "rotary"}}, r"model\.position"),
    ],
)
def test_bad_values_are_refused_before_any_computation(change, match):
    with pytest.raises(ConfigError, match=match):
        mim_jax.create({**TINY, **change})
