import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import mim_jax
from mim_jax.errors import ConfigError
from tests.methods import conv_vit_peer as peer
from tests.tiny import ROOT, clock

CONV = dict(
    method="convmae",
    image_size=48,
    model=peer.MODEL,
    decoder=dict(width=peer.DECODER_WIDTH, depth=1, heads=peer.DECODER_HEADS),
)
LAYOUT = "Alpha-VL/ConvMAE"
KEEP = 9


@pytest.fixture(scope="module")
def state():
    shapes = {**peer.encoder_shapes(), **peer.decoder_shapes(8 * 8 * 3, ratio=4)}
    return peer.random_state(shapes) | peer.tables()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def noise():
    return torch.rand(2, 36, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def convmae():
    return mim_jax.create(CONV)


@pytest.fixture(scope="module")
def variables(convmae, state):
    return mim_jax.import_weights(convmae, {"model": state, "epoch": 1600}, LAYOUT, strict=True)


@pytest.fixture(scope="module")
def loss(convmae):
    return jax.jit(lambda v, b, m: convmae.loss(v, b, m, jax.random.key(0), clock()))


def batch_of(images):
    return {"image": images.permute(0, 2, 3, 1).numpy()}


def normalised_patches(images):
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8)  # B, C, rows, columns, p, p
    target = patches.permute(0, 2, 3, 4, 5, 1).reshape(len(images), 36, -1)
    return (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True, unbiased=True) + 1e-6).sqrt()


def reference(state, images, noise):
    """Latent, prediction and loss of convmae.md, steps 1 to 10."""
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)
    hidden = (restore >= KEEP).float()
    latent = peer.encode(state, images, hidden, order[:, :KEEP])
    prediction = peer.decode(state, latent, restore)
    error = (prediction - normalised_patches(images)).square().mean(-1)
    return latent, prediction, (error * hidden).sum() / hidden.sum()


def test_equals_the_official_computation(variables, state, images, noise, loss):
    latent, prediction, expected = reference(state, images, noise)
    masks = mim_jax.TokenMask.from_noise(noise.numpy(), KEEP)
    value, aux = loss(variables, batch_of(images), masks)
    peer.assert_equal(aux["latent"], latent)
    peer.assert_equal(aux["prediction"], prediction)
    peer.assert_equal(value, expected)


@pytest.fixture(scope="module")
def complementary():
    return mim_jax.create({**CONV, "complementary": True})


def test_complementary_views_are_those_of_fastconvmae(complementary, state, images, noise):
    """Four quarters of one shuffle share their maps; the decoder's input is rolled by a quarter from view to view."""
    variables = mim_jax.import_weights(complementary, {"model": state}, "Alpha-VL/FastConvMAE", strict=True)
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)
    ids = torch.cat(order.chunk(4, dim=1))
    rolled = torch.cat([(restore - start) % 36 for start in range(0, 36, KEEP)])
    hidden = (rolled >= KEEP).float()
    latent = peer.encode(state, images, hidden, ids, views=4, complementary=True)
    prediction = peer.decode(state, latent, rolled)
    target = normalised_patches(images).repeat(4, 1, 1)
    error = (prediction - target).square().mean(-1)
    masks = mim_jax.TokenMask.from_noise(noise.numpy(), KEEP)
    loss = jax.jit(lambda v, b, m: complementary.loss(v, b, m, jax.random.key(0), clock()))
    value, aux = loss(variables, batch_of(images), masks)
    peer.assert_equal(aux["latent"], latent)
    peer.assert_equal(aux["prediction"], prediction)
    peer.assert_equal(aux["target"], target)
    peer.assert_equal(value, (error * hidden).sum() / hidden.sum())


def test_complementary_views_need_a_whole_fraction_of_the_patches():
    with pytest.raises(ConfigError, match="mask_ratio keeps 14 of 36 tokens"):
        mim_jax.create({**CONV, "complementary": True, "mask_ratio": 0.6})


def test_the_intact_image_is_encoded_without_a_mask(convmae, variables, state, images):
    tokens = jax.jit(convmae.encode)(variables, batch_of(images)["image"])["tokens"]
    peer.assert_equal(tokens, peer.encode(state, images))


def test_the_checkpoint_goes_out_as_it_came_in(convmae, variables, state, tmp_path):
    exported = load_file(mim_jax.export_weights(convmae, variables, tmp_path, LAYOUT))
    assert exported.keys() == state.keys()
    for name, tensor in state.items():
        atol = 1e-6 if name.endswith("pos_embed") else 0.0
        np.testing.assert_allclose(exported[name], tensor.numpy(), rtol=0, atol=atol, err_msg=name)


def test_latents_do_not_depend_on_hidden_pixels(variables, images, noise, loss):
    masks = mim_jax.TokenMask.from_noise(noise.numpy(), KEEP)
    batch = batch_of(images)
    hidden = np.asarray(masks.mask).reshape(2, 6, 6).repeat(8, axis=1).repeat(8, axis=2)[..., None]
    other = {"image": np.where(hidden, 1.0 - batch["image"], batch["image"])}
    before, after = loss(variables, batch, masks)[1], loss(variables, other, masks)[1]
    np.testing.assert_array_equal(before["latent"], after["latent"])
    assert not np.allclose(before["target"], after["target"])


def test_parameter_counts_are_the_sheets():
    objective = mim_jax.create(mim_jax.load_config(str(ROOT / "configs" / "convmae_conv_vit_b_in1k.py")))
    params = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())["params"]
    counts = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    assert counts["encoder"] + 196 * 768 == 88_932_736
    assert sum(counts.values()) + 250_880 == 115_041_408  # the fixed tables are constants here
    assert objective.masks({}, objective.batch_spec(), jax.random.key(0), clock()).num_keep == 49


def test_another_mask_ratio_than_0_to_1_is_refused():
    with pytest.raises(ConfigError, match="mask_ratio"):
        mim_jax.create({**CONV, "mask_ratio": 1.0})
