"""CroCo, both versions, against a PyTorch model with the official names, and the properties of its description."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import mim_jax
from mim_jax.errors import ConfigError, WeightsError
from tests.methods import cross_peers
from tests.methods.test_cropmae import assert_equal, pytorch
from tests.tiny import ROOT, clock, tiny_config

LAYOUT = "naver/croco"
KEY = jax.random.key(0)
# The official code hides where the permutation that sorts the noise is small, not where the noise is.
MASK = np.argsort(np.random.default_rng(2).random((3, 16)), axis=1) < 14


@functools.cache
def make(position):
    sizes = dict(width=16, depth=2, heads=2)
    model = dict(**sizes, patch_size=4, position=position)
    return mim_jax.create(dict(method="croco", image_size=16, model=model, decoder=sizes))


@functools.cache
def peer_of(position):
    return cross_peers.randomised(cross_peers.CroCo(rope=position == "rope"))


@functools.cache
def variables_of(position):
    return mim_jax.import_weights(make(position), {"model": peer_of(position).state_dict()}, LAYOUT, strict=True)


@functools.cache
def predictor(position):
    """`(variables, batch, masks) -> aux`, compiled."""
    return jax.jit(lambda *inputs: make(position).loss(*inputs, KEY, clock())[1])


@pytest.fixture(params=["sincos", "rope"])
def position(request):
    return request.param


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=(3, 16, 16, 3)).astype(np.float32) for name in ("image", "view2")}


@pytest.fixture(scope="module")
def masks():
    return mim_jax.TokenMask.from_bool(MASK)


def test_latent_prediction_loss_and_every_gradient(position, batch, masks, tmp_path):
    objective, peer = make(position), peer_of(position)
    loss, prediction, latent = peer(pytorch(batch["image"]), pytorch(batch["view2"]), torch.tensor(MASK))
    peer.zero_grad()
    loss.backward()

    def ours(params):
        return objective.loss({"params": params}, batch, masks, KEY, clock())

    (value, aux), gradients = jax.jit(jax.value_and_grad(ours, has_aux=True))(variables_of(position)["params"])
    assert_equal(aux["latent"], latent)
    assert_equal(aux["prediction"], prediction)
    assert_equal(value, loss)
    exported = load_file(mim_jax.export_weights(objective, {"params": gradients}, tmp_path, LAYOUT))
    for name, parameter in peer.named_parameters():
        if name.endswith("projk.bias"):  # zero but for rounding: softmax does not see it
            np.testing.assert_allclose(exported.pop(name), parameter.grad.numpy(), rtol=0, atol=1e-6)
        else:
            assert_equal(exported.pop(name), parameter.grad, 3e-5)
    assert exported.keys() == (set() if position == "rope" else {"enc_pos_embed", "dec_pos_embed"})


def test_two_whole_views_can_be_decoded(position, batch):
    objective, peer, params = make(position), peer_of(position), variables_of(position)["params"]
    latents = [objective.encoder.apply({"params": params["encoder"]}, batch[name]) for name in ("image", "view2")]
    ours = objective.decoder.apply({"params": params["decoder"]}, *latents, None)
    theirs = [peer.encode(pytorch(batch[name])) for name in ("image", "view2")]
    assert_equal(latents[1], theirs[1])
    assert_equal(ours, peer.decode(*theirs))


def test_weights_go_out_as_they_came_in(position, tmp_path):
    exported = load_file(mim_jax.export_weights(make(position), variables_of(position), tmp_path, LAYOUT))
    theirs = {name: tensor.numpy() for name, tensor in peer_of(position).state_dict().items()}
    assert exported.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(exported[name], tensor, err_msg=name)


def test_weights_of_version_1_do_not_fit_version_2():
    with pytest.raises(WeightsError, match="left over in the source: .*pos_embed"):
        mim_jax.import_weights(make("rope"), peer_of("sincos").state_dict(), LAYOUT)


def test_weights_of_version_2_do_not_fit_version_1():
    with pytest.raises(WeightsError, match="set model.position to .*: dec_pos_embed|enc_pos_embed"):
        mim_jax.import_weights(make("sincos"), peer_of("rope").state_dict(), LAYOUT)


@pytest.mark.parametrize(("image_size", "kept"), [(32, 1), (48, 1)])
def test_grids_of_few_patches_keep_one(image_size, kept):
    changes = {"image_size": image_size, "model.patch_size": 16}
    assert mim_jax.create(tiny_config("croco", changes)).num_keep == kept


@pytest.mark.parametrize("ratio", [0.01, 1.0])
def test_a_ratio_that_hides_none_or_all_is_refused(ratio):
    with pytest.raises(ConfigError, match="mask_ratio .* hides"):
        mim_jax.create(tiny_config("croco", {"mask_ratio": ratio}))


def test_exactly_the_truncated_number_of_patches_is_hidden():
    for name, hidden, patches in (("croco_vit_b16_habitat", 176, 196), ("croco_fashion_mnist", 44, 49)):
        objective = mim_jax.create(mim_jax.load_config(str(ROOT / f"configs/{name}.py")))
        masks = jax.jit(lambda rng, o=objective: o.masks({}, o.batch_spec(8), rng, clock()))(KEY)
        assert masks.mask.sum(axis=1).tolist() == [hidden] * 8
        assert masks.ids_keep.shape == (8, patches - hidden)
        assert (np.diff(masks.ids_keep, axis=1) > 0).all()  # in raster order
        assert len({tuple(ids) for ids in masks.ids_keep.tolist()}) == 8


def test_gradients_reach_the_other_view_and_no_hidden_pixel(position, batch, masks):
    weights = jnp.asarray(np.random.default_rng(4).normal(size=(3, 16, 48)).astype(np.float32))

    def total(images, view2):
        return (
            predictor(position)(variables_of(position), {"image": images, "view2": view2}, masks)["prediction"]
            * weights
        ).sum()

    of_image, of_view2 = jax.grad(total, argnums=(0, 1))(*map(jnp.asarray, (batch["image"], batch["view2"])))
    by_patch = np.abs(cross_peers.patches_of(pytorch(np.asarray(of_image))).numpy()).max(axis=-1)
    np.testing.assert_array_equal(by_patch > 0, ~MASK)
    assert (np.abs(cross_peers.patches_of(pytorch(np.asarray(of_view2))).numpy()).max(axis=-1) > 0).all()


def test_without_cross_attention_the_other_view_is_not_seen(position, batch, masks):
    params = variables_of(position)["params"]
    blocks = params["decoder"]["stack"]["blocks"]
    silent = {**blocks["cross_attention"], "out": jax.tree.map(jnp.zeros_like, blocks["cross_attention"]["out"])}
    deaf = {**params, "decoder": {**params["decoder"], "stack": {"blocks": {**blocks, "cross_attention": silent}}}}
    other = {**batch, "view2": batch["view2"][::-1]}
    for weights, same in ((deaf, True), (params, False)):
        one, two = (predictor(position)({"params": weights}, b, masks)["prediction"] for b in (batch, other))
        assert np.array_equal(one, two) == same


def test_visible_positions_do_not_count(position, batch, masks):
    aux = predictor(position)(variables_of(position), batch, masks)
    error = np.square(np.asarray(aux["prediction"]) - np.asarray(aux["target"])).mean(axis=-1)
    np.testing.assert_allclose(aux["terms"]["reconstruction"], error[MASK].mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "decoder", "encoder_count", "count"),
    [
        ("croco_vit_b16_habitat", None, 85_646_592, 120_076_288),
        ("croco_v2_vit_b16_pairs", (512, 8, 16), 85_646_592, 120_076_288),
        ("croco_v2_vit_b16_pairs", None, 85_646_592, 200_269_824),
        ("croco_v2_vit_l16_pairs", None, 303_098_880, 417_918_720),
    ],
)
def test_parameter_counts_are_the_official_ones(config, decoder, encoder_count, count):
    config = mim_jax.load_config(str(ROOT / f"configs/{config}.py"))
    if decoder is not None:
        config.decoder.update(dict(zip(("width", "depth", "heads"), decoder, strict=True)))
    objective = mim_jax.create(config)
    params = jax.eval_shape(objective.init, KEY, objective.batch_spec())["params"]
    counts = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    assert counts["encoder"] == encoder_count and sum(counts.values()) == count


def test_impossible_settings_are_named():
    sizes = dict(width=16, depth=1, heads=2)
    with pytest.raises(ConfigError, match="model.class_token is True; CroCo has none"):
        mim_jax.create(dict(method="croco", image_size=16, model=dict(sizes, patch_size=4, class_token=True)))
    narrow = dict(width=12, depth=1, heads=2)
    for model, decoder, section in ((narrow, sizes, "model"), (sizes, narrow, "decoder")):
        model = dict(model, patch_size=4, position="rope")
        with pytest.raises(ConfigError, match=f"{section}.width 12 over {section}.heads 2 gives heads of 6 channels"):
            mim_jax.create(dict(method="croco", image_size=16, model=model, decoder=decoder))
