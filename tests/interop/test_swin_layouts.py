"""Swin's layouts against the official model, written in PyTorch from the sheet, and against transformers' own."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import mim_jax
from mim_jax.errors import WeightsError
from mim_jax.layers.patches import unpatchify
from mim_jax.layers.relative_resize import resize_relative_table
from tests.models import swin_peer as peer

CLOCK = mim_jax.Clock.at(0, total_steps=10, steps_per_epoch=5)
HALF = peer.PATCH, peer.PATCH


@pytest.fixture(scope="module")
def objective():
    return mim_jax.create(peer.CONFIG)


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, peer.IMAGE, peer.IMAGE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def hidden():
    """Any patches at all: nothing has to be aligned with the output's tokens."""
    return torch.rand(3, 144, generator=torch.Generator().manual_seed(2)) < 0.5


@pytest.fixture(scope="module")
def step(objective):
    """Loss and `aux`, with gradients of the parameters."""
    return jax.jit(
        lambda variables, batch, masks: jax.value_and_grad(
            lambda v: objective.loss(v, batch, masks, None, CLOCK), has_aux=True
        )(variables)
    )


def nhwc(images):
    return images.permute(0, 2, 3, 1).numpy()


def masks_of(hidden):
    return mim_jax.TokenMask.from_bool(hidden.numpy())


def pictures(patches, size, patch):
    return np.asarray(unpatchify(patches, patch, (size // patch[0], size // patch[1]))).transpose(0, 3, 1, 2)


def assert_equal(ours, theirs):
    """Within 1e-5 of the largest number."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def classifier(**config):
    return mim_jax.create(dict(task="classification", num_classes=5, image_size=peer.IMAGE, model=peer.MODEL) | config)


def test_official_pre_training_end_to_end(objective, step, images, hidden, tmp_path):
    state = peer.pretrained_state()
    wrapped = {f"module.{name}": tensor for name, tensor in (state | peer.buffers("encoder.")).items()}
    variables = mim_jax.import_weights(objective, {"model": wrapped, "epoch": 99}, "microsoft/SimMIM", strict=True)
    trained = {name: tensor.requires_grad_() for name, tensor in state.items()}
    latent, picture, loss = peer.simmim(trained, images, hidden)
    loss.backward()
    (ours, aux), gradients = step(variables, {"image": nhwc(images)}, masks_of(hidden))
    assert_equal(aux["latent"], latent)
    assert_equal(pictures(aux["prediction"], peer.IMAGE, HALF), picture)
    assert_equal(ours, loss)
    encoder = gradients["params"]["encoder"]
    table = state["encoder.layers.0.blocks.1.attn.relative_position_bias_table"]
    assert_equal(encoder["stage1"]["stack"]["blocks"]["odd"]["relative_bias"]["table"][0], table.grad)
    assert_equal(encoder["mask_token"], state["encoder.mask_token"].grad[0, 0])
    exported = load_file(mim_jax.export_weights(objective, variables, tmp_path, "microsoft/SimMIM"))
    assert exported.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(exported[name], tensor.detach().numpy())


def test_an_encoder_without_its_prefix_is_recognised(objective):
    """As the official code strips it for fine-tuning."""
    state = {name: tensor for name, tensor in peer.pretrained_state().items() if name.startswith("encoder.")}
    stripped = {name.removeprefix("encoder."): tensor for name, tensor in state.items()}
    with pytest.warns(mim_jax.interop.WeightsWarning, match="params/head is not in the source"):
        variables = mim_jax.import_weights(objective, stripped, "microsoft/SimMIM")
    whole = mim_jax.import_weights(objective, state, "microsoft/SimMIM", parts=("encoder",))
    jax.tree.map(np.testing.assert_array_equal, variables["params"]["encoder"], whole["params"]["encoder"])


def test_an_official_fine_tuned_model(images, tmp_path):
    objective, state = classifier(), peer.finetuned_state(5)
    variables = mim_jax.import_weights(objective, {"model": state | peer.buffers("")}, "microsoft/SimMIM", strict=True)
    pooled = peer.encode(state, images, prefix="").mean(dim=1)
    expected = torch.nn.functional.linear(pooled, state["head.weight"], state["head.bias"])
    assert_equal(jax.jit(objective.predict)(variables, nhwc(images)), expected)
    exported = load_file(mim_jax.export_weights(objective, variables, tmp_path, "microsoft/SimMIM"))
    assert exported.keys() == state.keys()


def test_fine_tuning_with_other_windows_resizes_the_tables():
    state = {name: tensor.numpy() for name, tensor in peer.pretrained_state().items()}
    other = classifier(image_size=32, model={**peer.MODEL, "window": 8})
    with pytest.raises(WeightsError, match="11x11 grid where the model has 15x15; pass resize_positions"):
        mim_jax.import_weights(other, state, "microsoft/SimMIM", parts=("encoder",))
    with pytest.warns(mim_jax.interop.WeightsWarning):  # of the pixel head
        variables = mim_jax.import_weights(other, state, "microsoft/SimMIM", parts=("encoder",), resize_positions=True)
    table = state["encoder.layers.1.blocks.3.attn.relative_position_bias_table"]
    ours = variables["params"]["encoder"]["stage2"]["stack"]["blocks"]["odd"]["relative_bias"]["table"][1]
    np.testing.assert_array_equal(ours, resize_relative_table(table, (11, 11), (15, 15)))


def randomize(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator) + offset)
    return model.eval()


def transformers_model(image_size, window):
    config = transformers.SwinConfig(
        image_size=image_size,
        patch_size=peer.PATCH,
        embed_dim=peer.WIDTH,
        depths=list(peer.DEPTHS),
        num_heads=list(peer.HEADS),
        window_size=window,
        encoder_stride=peer.STRIDE,
        drop_path_rate=0.0,
    )
    return randomize(transformers.SwinForMaskedImageModeling(config))


def test_transformers_masked_image_modelling_with_windows_that_do_not_tile(tmp_path):
    model = transformers_model(28, 4)  # maps of 14x14 and 7x7
    objective = mim_jax.create({**peer.CONFIG, "image_size": 28, "model": {**peer.MODEL, "window": 4}})
    variables = mim_jax.import_weights(objective, model.state_dict(), "transformers/swin_mim", strict=True)
    generator = torch.Generator().manual_seed(3)
    images, hidden = torch.randn(2, 3, 28, 28, generator=generator), torch.rand(2, 196, generator=generator) < 0.5
    out = model(images, bool_masked_pos=hidden)
    out.loss.backward()

    def loss(variables):
        return objective.loss(variables, {"image": nhwc(images)}, masks_of(hidden), None, CLOCK)

    (loss, aux), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
    assert_equal(loss, out.loss)
    assert_equal(pictures(aux["prediction"], 28, HALF), out.reconstruction)
    reduction = gradients["params"]["encoder"]["stage1"]["merge"]["reduction"]["kernel"]
    assert_equal(reduction.T, model.swin.encoder.layers[0].downsample.reduction.weight.grad)
    mim_jax.export_weights(objective, variables, tmp_path, "transformers/swin_mim")
    again = transformers.SwinForMaskedImageModeling.from_pretrained(tmp_path)
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=0)
    assert json.loads((tmp_path / "config.json").read_text())["window_size"] == 4


def test_the_other_layout_is_named(objective):
    state = transformers_model(peer.IMAGE, 6).state_dict()
    with pytest.raises(WeightsError, match="looks like layout 'transformers/swin_mim'"):
        mim_jax.import_weights(objective, {k: v for k, v in state.items() if k.startswith("swin.")}, "microsoft/SimMIM")


def test_transformers_with_a_map_of_odd_length():
    model = transformers_model(26, 4)  # maps of 13x13 and 7x7
    objective = classifier(image_size=26, model={**peer.MODEL, "window": 4})
    with pytest.warns(mim_jax.interop.WeightsWarning):  # of the pixel head and the mask token
        variables = mim_jax.import_weights(objective, model.state_dict(), "transformers/swin_mim", parts=("encoder",))
    images = torch.randn(2, 3, 26, 26, generator=torch.Generator().manual_seed(4))
    out = model.swin(images, output_hidden_states=True, output_hidden_states_before_downsampling=True)
    encoder, params = objective.encoder, {"params": variables["params"]["encoder"]}
    tokens, stages = jax.jit(lambda p, x: (encoder.apply(p, x), encoder.apply(p, x, return_stages=True)))(
        params, nhwc(images)
    )
    assert_equal(tokens, out.last_hidden_state)
    for ours, theirs in zip(stages, out.reshaped_hidden_states[1:], strict=True):
        assert_equal(ours, theirs.permute(0, 2, 3, 1))
