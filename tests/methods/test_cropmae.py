"""CropMAE against a PyTorch model with the official names, and the properties of its description."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from safetensors.numpy import load_file

import mim_jax
from mim_jax.errors import ConfigError, WeightsError
from mim_jax.masking.token_mask import num_kept
from mim_jax.models.vit import vit_size
from mim_jax.targets.pixels import masked_mean, pixel_target
from tests.methods import cross_peers
from tests.tiny import ROOT, clock

LAYOUT = "alexandre-eymael/CropMAE"
KEY = jax.random.key(0)
NOISE = np.random.default_rng(2).random((3, cross_peers.TOKENS), np.float32)


def make(**changes):
    decoder = {**dict(width=8, depth=2, heads=2, mlp_hidden=24, dropout=0.0), **changes.pop("decoder", {})}
    model = dict(width=16, depth=2, heads=2, patch_size=4)
    return mim_jax.create(
        dict(method="cropmae", image_size=16, model=model, decoder=decoder, mask_ratio=0.85, **changes)
    )


@pytest.fixture(scope="module")
def objective():
    return make()


@pytest.fixture(scope="module")
def peer():
    return cross_peers.randomised(cross_peers.CropMAE())


@pytest.fixture(scope="module")
def variables(objective, peer):
    return mim_jax.import_weights(objective, {"model": peer.state_dict(), "epoch": 400}, LAYOUT, strict=True)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=(3, 16, 16, 3)).astype(np.float32) for name in ("image", "view2")}


@pytest.fixture(scope="module")
def masks():
    return mim_jax.TokenMask.from_noise(jnp.asarray(NOISE), 2)


@pytest.fixture(scope="module")
def predict(objective):
    return jax.jit(lambda variables, batch, masks: objective.loss(variables, batch, masks, KEY, clock())[1])


def pytorch(images):
    return torch.tensor(images).permute(0, 3, 1, 2)


def assert_equal(ours, theirs, tolerance=1e-5):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def test_latent_prediction_loss_and_every_gradient(objective, peer, variables, batch, masks, tmp_path):
    loss, prediction, latent = peer(pytorch(batch["view2"]), pytorch(batch["image"]), torch.tensor(NOISE), 2)
    peer.zero_grad()
    loss.backward()

    def ours(params):
        return objective.loss({"params": params}, batch, masks, KEY, clock())

    (value, aux), gradients = jax.jit(jax.value_and_grad(ours, has_aux=True))(variables["params"])
    assert_equal(aux["latent"], latent)
    assert_equal(aux["prediction"], prediction)
    assert_equal(value, loss)
    assert float(aux["terms"]["reconstruction"]) == float(value)
    # The rules that carry weights out carry gradients too.
    exported = load_file(mim_jax.export_weights(objective, {"params": gradients}, tmp_path, LAYOUT))
    for name, parameter in peer.named_parameters():
        if parameter.requires_grad:
            assert_equal(exported.pop(name), parameter.grad, 3e-5)
    assert exported.keys() == {"pos_embed", "decoder_pos_embed"}


def test_weights_go_out_as_they_came_in(objective, peer, variables, tmp_path):
    exported = load_file(mim_jax.export_weights(objective, variables, tmp_path, LAYOUT))
    theirs = {name: tensor.numpy() for name, tensor in peer.state_dict().items()}
    assert exported.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(exported[name], tensor, err_msg=name)


def test_a_fused_projection_of_the_wrong_size_is_named(objective, peer):
    state = dict(peer.state_dict())
    name = "decoder_blocks.1.multihead_attn.in_proj_weight"
    state[name] = state[name][:-1]
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        mim_jax.import_weights(objective, state, LAYOUT)


def test_the_number_of_visible_patches_is_truncated():
    assert [num_kept(196, ratio) for ratio in (0.985, 0.95, 0.99)] == [2, 9, 1]


def test_masks_differ_between_images(objective, variables):
    batch = {"image": jnp.zeros((64, 16, 16, 3))}
    drawn = objective.masks(variables, batch, jax.random.key(1), clock())
    assert drawn.ids_keep.shape == (64, 2) and (~drawn.mask).sum(axis=1).tolist() == [2] * 64
    assert len({tuple(sorted(ids)) for ids in drawn.ids_keep.tolist()}) > 30


def test_the_prediction_depends_on_the_reference_through_cross_attention_alone(variables, batch, masks, predict):
    other = {**batch, "view2": batch["view2"][::-1]}
    before, after = (predict(variables, b, masks)["prediction"] for b in (batch, other))
    assert np.abs(before - after).max() > 1e-2
    params = variables["params"]
    blocks = params["decoder"]["stack"]["blocks"]
    silent = {**blocks["cross_attention"], "out": jax.tree.map(jnp.zeros_like, blocks["cross_attention"]["out"])}
    deaf = {**params, "decoder": {**params["decoder"], "stack": {"blocks": {**blocks, "cross_attention": silent}}}}
    before, after = (predict({"params": deaf}, b, masks)["prediction"] for b in (batch, other))
    np.testing.assert_array_equal(before, after)


def test_only_hidden_patches_of_the_image_are_targets(variables, batch, masks, predict):
    aux = predict(variables, batch, masks)
    np.testing.assert_allclose(aux["target"], pixel_target(jnp.asarray(batch["image"]), (4, 4), True), atol=1e-6)
    error = jnp.square(aux["prediction"] - aux["target"]).mean(axis=-1)
    hidden = jnp.asarray(np.argsort(np.argsort(NOISE, axis=1), axis=1) >= 2)
    np.testing.assert_allclose(aux["terms"]["reconstruction"], masked_mean(error, hidden), rtol=1e-6)


def test_dropout_is_for_training(variables, batch, masks):
    dropping = make(decoder={"dropout": 0.1})
    loss = jax.jit(dropping.loss)
    values = [float(loss(variables, batch, masks, jax.random.key(i), clock())[0]) for i in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    pictures = [jax.jit(o.reconstruct)(variables, batch, masks)["reconstruction"] for o in (dropping, make())]
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize(
    ("size", "decoder", "encoder_count", "count"),
    [
        ("S", (256, 4, 8), 21_590_016, 28_201_728),
        ("B", (512, 8, 16), 85_647_360, 120_068_864),
        ("L", (1024, 12, 16), 303_099_904, 456_143_616),
    ],
)
def test_parameter_counts_are_the_official_ones(size, decoder, encoder_count, count):
    config = mim_jax.load_config(str(ROOT / "configs/cropmae_vit_s16_in1k.py"))
    config.model.update(vit_size(size))
    config.decoder.update(dict(zip(("width", "depth", "heads"), decoder, strict=True)))
    objective = mim_jax.create(config)
    params = jax.eval_shape(objective.init, KEY, objective.batch_spec())["params"]
    counts = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    assert counts["encoder"] == encoder_count and sum(counts.values()) == count
    assert objective.num_keep == 2


@pytest.mark.slow
def test_a_reference_that_shows_the_answer_is_copied():
    """On patches of random colours nothing but the reference helps, and its use has to be learnt."""
    objective = mim_jax.create(
        dict(
            method="cropmae",
            image_size=8,
            model=dict(width=32, depth=1, heads=2, patch_size=4),
            decoder=dict(width=32, depth=1, heads=2, mlp_hidden=64, dropout=0.0),
            mask_ratio=0.7,
            norm_pix_loss=False,
        )
    )
    optimizer = optax.adam(3e-3)

    def train(same):
        def step(carry, rng):
            params, state = carry
            image_rng, other_rng, mask_rng = jax.random.split(rng, 3)
            colours = (jax.random.normal(key, (64, 2, 2, 3)) for key in (image_rng, image_rng if same else other_rng))
            pictures = (jnp.repeat(jnp.repeat(x, 4, axis=1), 4, axis=2) for x in colours)
            batch = dict(zip(("image", "view2"), pictures, strict=True))
            masks = objective.masks({}, batch, mask_rng, clock())
            loss, gradients = jax.value_and_grad(
                lambda params: objective.loss({"params": params}, batch, masks, KEY, clock())[0]
            )(params)
            updates, state = optimizer.update(gradients, state)
            return (optax.apply_updates(params, updates), state), loss

        params = objective.init(KEY, objective.batch_spec())["params"]
        rngs = jax.random.split(jax.random.key(1), 320)
        return jax.lax.scan(step, (params, optimizer.init(params)), rngs)[1][-20:].mean()

    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
        assert jax.jit(train, static_argnums=0)(True) < 0.1
        assert jax.jit(train, static_argnums=0)(False) > 0.8


def test_torchs_fused_projection_is_initialised_as_one_matrix():
    objective = make()
    blocks = jax.jit(objective.init)(KEY, objective.batch_spec())["params"]["decoder"]["stack"]["blocks"]
    for name in ("query", "key", "value"):
        largest = np.abs(blocks["cross_attention"][name]["kernel"]).max()
        assert 0.9 * np.sqrt(6 / 32) < largest <= np.sqrt(6 / 32)
    assert np.abs(blocks["cross_attention"]["out"]["kernel"]).max() > np.sqrt(6 / 32)


def test_impossible_settings_are_named():
    with pytest.raises(ConfigError, match="decoder.dropout is 1.0; it must lie in"):
        make(decoder={"dropout": 1.0})
    with pytest.raises(ConfigError, match="mask_ratio 0.985 keeps 0 of 16 tokens"):
        mim_jax.create(dict(method="cropmae", image_size=16, model=dict(patch_size=4)))
