"""The methods against `transformers`: same random weights, same latents, predictions, losses and gradients."""

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import mim_jax
from mim_jax.interop import WeightsWarning
from mim_jax.layers.position import sincos_table

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
COMMON = dict(**SIZES, image_size=24, patch_size=6, layer_norm_eps=1e-6, num_channels=3)
MODEL = dict(width=32, depth=2, heads=4, patch_size=6)
GRID, TOKENS = (4, 4), 16
CLOCK = mim_jax.Clock.at(0, total_steps=10, steps_per_epoch=5)
KEY = jax.random.key(0)


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def batch_of(pixels):
    return {"image": pixels.permute(0, 2, 3, 1).numpy()}


def assert_equal(ours, theirs):
    """Within 1e-5 of the largest number."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def randomised(model):
    """Every parameter normal and of order one after its layer, so that no term is negligible."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.5 if parameter.ndim < 2 else 1.5 / np.sqrt(parameter[0].numel())
        is_norm = "norm" in name and name.endswith("weight")
        parameter.data = noise * scale + float(is_norm)
    return model.eval()


def set_sincos(table):
    # Their constructor leaves the fixed tables of vit_mae zero; public checkpoints hold these.
    table.data[0, table.shape[1] - TOKENS :] = torch.tensor(sincos_table(GRID, table.shape[2]).copy())
    table.data[0, : table.shape[1] - TOKENS] = 0


@pytest.fixture(scope="module")
def mae_peer():
    config = transformers.ViTMAEConfig(
        **COMMON,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        mask_ratio=0.75,
        norm_pix_loss=True,
    )
    peer = randomised(transformers.ViTMAEForPreTraining(config))
    set_sincos(peer.vit.embeddings.position_embeddings)
    set_sincos(peer.decoder.decoder_pos_embed)
    return peer


def make_mae(**config):
    model = {**MODEL, **config.pop("model", {})}
    decoder = dict(width=16, depth=1, heads=2)
    return mim_jax.create(dict(method="mae", image_size=24, model=model, decoder=decoder, **config))


def test_mae_latent_prediction_loss_and_every_gradient(mae_peer, pixels, tmp_path):
    objective = make_mae()
    variables = mim_jax.import_weights(objective, mae_peer.state_dict(), "transformers/vit_mae", strict=True)
    noise = torch.rand(2, TOKENS, generator=torch.Generator().manual_seed(2))
    masks = mim_jax.TokenMask.from_noise(noise.numpy(), 4)
    latent = mae_peer.vit(pixels, noise=noise).last_hidden_state
    theirs = mae_peer(pixels, noise=noise)
    mae_peer.zero_grad()
    theirs.loss.backward()

    def loss(params):
        return objective.loss({"params": params}, batch_of(pixels), masks, KEY, CLOCK)

    (ours, aux), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    np.testing.assert_array_equal(np.asarray(masks.mask), theirs.mask.numpy().astype(bool))
    assert_equal(aux["latent"], latent)
    assert_equal(aux["prediction"], theirs.logits)
    assert_equal(ours, theirs.loss)

    # The rules that carry weights out carry gradients too.
    exported = load_file(mim_jax.export_weights(objective, {"params": gradients}, tmp_path, "transformers/vit_mae"))
    named = {hub_name(name): parameter for name, parameter in mae_peer.named_parameters()}
    trained = {name: parameter.grad for name, parameter in named.items() if parameter.requires_grad}
    assert set(exported) - set(trained) == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    for name, gradient in trained.items():
        # Of key biases the gradient is zero but for rounding: softmax does not see them.
        tolerance = 1e-6 if name.endswith("key.bias") else 2e-5 * gradient.abs().max().item()
        np.testing.assert_allclose(exported[name], gradient.numpy(), rtol=0, atol=tolerance, err_msg=name)


def test_mae_loss_on_plain_pixels(mae_peer, pixels, monkeypatch):
    objective = make_mae(norm_pix_loss=False)
    monkeypatch.setattr(mae_peer.config, "norm_pix_loss", False)
    variables = mim_jax.import_weights(objective, mae_peer.state_dict(), "transformers/vit_mae", strict=True)
    noise = torch.rand(2, TOKENS, generator=torch.Generator().manual_seed(2))
    masks = mim_jax.TokenMask.from_noise(noise.numpy(), 4)
    loss, _ = jax.jit(objective.loss)(variables, batch_of(pixels), masks, KEY, CLOCK)
    assert_equal(loss, mae_peer(pixels, noise=noise).loss)


def hub_name(name):
    """The name transformers gives in files to what its modules call otherwise since version 5."""
    name = name.replace("vit.layers.", "vit.encoder.layer.")
    for module, file in {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }.items():
        name = name.replace(module, file)
    return name


def test_vit_model_features(pixels):
    peer = randomised(transformers.ViTModel(transformers.ViTConfig(**COMMON)))
    objective = make_mae(model=dict(position="learned"))
    with pytest.warns(WeightsWarning, match="params/decoder is not in the source: left random"):
        variables = mim_jax.import_weights(objective, peer.state_dict(), "transformers/vit")
    features = jax.jit(objective.encode)(variables, batch_of(pixels)["image"])
    theirs = peer(pixels).last_hidden_state
    assert_equal(features["tokens"], theirs[:, 1:])
    assert_equal(features["pooled"], theirs[:, 0])


def test_vit_image_classification(pixels):
    peer = randomised(transformers.ViTForImageClassification(transformers.ViTConfig(**COMMON, num_labels=5)))
    model = dict(**MODEL, pool="class", position="learned")
    objective = mim_jax.create(dict(task="classification", image_size=24, num_classes=5, model=model))
    variables = mim_jax.import_weights(objective, peer.state_dict(), "transformers/vit", strict=True)
    assert_equal(jax.jit(objective.predict)(variables, batch_of(pixels)["image"]), peer(pixels).logits)


def make_simmim():
    model = dict(**MODEL, position="learned", relative_bias=False, qkv_bias="all", layer_scale=None, drop_path=0.0)
    return mim_jax.create(dict(method="simmim", image_size=24, mask_patch_size=12, model=model))


@pytest.fixture(scope="module")
def mim_peer():
    return randomised(transformers.ViTForMaskedImageModeling(transformers.ViTConfig(**COMMON, encoder_stride=6)))


def test_masked_image_modeling_reconstruction_and_loss(mim_peer, pixels):
    objective = make_simmim()
    variables = mim_jax.import_weights(objective, mim_peer.state_dict(), "transformers/vit_mim", strict=True)
    hidden = torch.zeros(2, TOKENS, dtype=torch.bool)
    hidden[0, [0, 1, 4, 5, 7]] = hidden[1, [2, 3, 8, 9, 14]] = True
    theirs = mim_peer(pixels, bool_masked_pos=hidden)
    masks = mim_jax.TokenMask.from_bool(hidden.numpy())
    loss, aux = jax.jit(objective.loss)(variables, batch_of(pixels), masks, KEY, CLOCK)
    patches = theirs.reconstruction.unfold(2, 6, 6).unfold(3, 6, 6).permute(0, 2, 3, 4, 5, 1)
    assert_equal(aux["prediction"], patches.reshape(2, TOKENS, -1))
    assert_equal(loss, theirs.loss)


@pytest.fixture(scope="module")
def ijepa_peer():
    peer = randomised(transformers.IJepaModel(transformers.IJepaConfig(**COMMON)))
    set_sincos(peer.embeddings.position_embeddings)
    return peer


def make_ijepa():
    predictor = dict(width=16, depth=1, heads=2)
    return mim_jax.create(dict(method="ijepa", image_size=24, model=MODEL, predictor=predictor))


def test_ijepa_target_encoder(ijepa_peer, pixels, tmp_path):
    objective = make_ijepa()
    with pytest.warns(WeightsWarning) as record:
        variables = mim_jax.import_weights(objective, ijepa_peer.state_dict(), "transformers/ijepa")
    assert sorted(str(warning.message).split(": ")[1] for warning in record) == [
        "params/encoder is not in the source and was copied from teacher/encoder.",
        "params/predictor is not in the source",
    ]
    features = jax.jit(objective.encode)(variables, batch_of(pixels)["image"])
    assert_equal(features["tokens"], ijepa_peer(pixels).last_hidden_state)
    jax.tree.map(np.testing.assert_array_equal, variables["params"]["encoder"], variables["teacher"]["encoder"])
    with pytest.warns(WeightsWarning, match="does not hold params/encoder, params/predictor: not written"):
        mim_jax.export_weights(objective, variables, tmp_path, "transformers")
    assert_transformers_loads(tmp_path, ijepa_peer)


@pytest.mark.parametrize(
    ("make", "peer", "layout"),
    [(make_mae, "mae_peer", "transformers/vit_mae"), (make_simmim, "mim_peer", "transformers/vit_mim")],
)
def test_files_of_transformers_go_in_and_out(make, peer, layout, tmp_path, request):
    objective, peer = make(), request.getfixturevalue(peer)
    peer.save_pretrained(tmp_path / "theirs")
    variables = mim_jax.import_weights(objective, tmp_path / "theirs", layout, strict=True)
    # The owner alone is enough: the objective tells which of its models it is.
    mim_jax.export_weights(objective, variables, tmp_path / "ours", "transformers")
    assert_transformers_loads(tmp_path / "ours", peer)


def assert_transformers_loads(directory, peer):
    """`from_pretrained` finds every tensor, and every one is the peer's bit by bit."""
    loaded, info = type(peer).from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    assert loaded.state_dict().keys() == peer.state_dict().keys()
    for name, tensor in peer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
