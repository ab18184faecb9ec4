"""MFM on a ResNet, beside a `transformers` ResNet with the sheet's corruption, head and loss."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mim_jax
from tests.interop import test_official_layouts as official
from tests.methods import test_mfm as vit_form
from tests.models import cnn_peer
from tests.tiny import ROOT, clock

SIZE, STRIDE, LAYOUT = 16, 8, "Jiahao000/MFM"
TINY = dict(
    method="mfm",
    image_size=SIZE,
    model=dict(backbone="resnet", depths=(1, 2), widths=(4, 8), stem_width=8),
    frequency=dict(radius=3.0),
)


@pytest.fixture(scope="module")
def network():
    return cnn_peer.make(
        "resnet", depths=[1, 2], hidden_sizes=[16, 32], embedding_size=8, layer_type="bottleneck", num_channels=3
    )


@pytest.fixture(scope="module")
def state(network):
    tensors = {
        f"encoder.{name}": value for name, value in cnn_peer.officially("resnet", network.state_dict().items()).items()
    }
    generator = torch.Generator().manual_seed(3)
    tensors["decoder.0.weight"] = 0.1 * torch.randn(STRIDE**2 * 3, 32, 1, 1, generator=generator)
    tensors["decoder.0.bias"] = 0.1 * torch.randn(STRIDE**2 * 3, generator=generator)
    return {name: torch.as_tensor(value) for name, value in tensors.items()}


def test_loss_and_statistics_are_pytorchs(network, state, tmp_path):
    objective = mim_jax.create(TINY)
    variables = mim_jax.import_weights(objective, {"model": state}, LAYOUT, strict=True)
    pixels = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    m = vit_form.frequency_masks()[:, None]
    spectrum = torch.fft.fftshift(torch.fft.fft2(pixels), dim=(2, 3)) * m
    corrupted = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(2, 3))).real.clamp(0, 1)

    trained = copy.deepcopy(network).train()
    features = trained((corrupted - vit_form.MEAN) / vit_form.STD).last_hidden_state
    prediction = F.pixel_shuffle(F.conv2d(features, state["decoder.0.weight"], state["decoder.0.bias"]), STRIDE)
    distances = vit_form.distances(prediction, (pixels - vit_form.MEAN) / vit_form.STD)
    expected = (distances * (1 - m)).sum() / ((1 - m).sum() * 3)

    masks = jnp.asarray(m[:, 0].numpy())
    loss, aux = jax.jit(objective.loss)(variables, vit_form.as_batch(pixels), masks, jax.random.key(0), clock())
    official.assert_equal(vit_form.as_images(aux["prediction"]), prediction)
    official.assert_equal(loss, expected)
    moved = cnn_peer.officially("resnet", trained.state_dict().items())
    np.testing.assert_allclose(aux["state"]["encoder"]["stem_norm"]["mean"], moved["bn1.running_mean"], atol=1e-6)
    last = aux["state"]["encoder"]["stage2"]["blocks"]["norm3"]["var"][0]
    np.testing.assert_allclose(last, moved["layer2.1.bn3.running_var"], rtol=1e-5)
    official.assert_round_trip(objective, variables, LAYOUT, state, tmp_path)


def test_an_official_fine_tuned_model_and_an_encoder_without_its_prefix(network, state):
    encoder = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    generator = torch.Generator().manual_seed(4)
    head = {"fc.weight": torch.randn(5, 32, generator=generator), "fc.bias": torch.randn(5, generator=generator)}
    task = mim_jax.create(dict(task="classification", num_classes=5, image_size=SIZE, model=TINY["model"]))
    variables = mim_jax.import_weights(task, {"model": encoder | head}, LAYOUT, strict=True)
    images = torch.randn(2, 3, SIZE, SIZE, generator=generator)
    pooled = network(images).last_hidden_state.mean(dim=(2, 3))
    expected = F.linear(pooled, head["fc.weight"], head["fc.bias"])
    official.assert_equal(jax.jit(task.predict)(variables, images.permute(0, 2, 3, 1).numpy()), expected)
    with pytest.warns(mim_jax.interop.WeightsWarning, match="params/head is not in the source"):
        stripped = mim_jax.import_weights(mim_jax.create(TINY), encoder, LAYOUT)
    jax.tree.map(np.testing.assert_array_equal, stripped["params"]["encoder"], variables["params"]["encoder"])


def test_features_are_those_of_running_statistics():
    objective = mim_jax.create(TINY)
    variables = objective.init(jax.random.key(0), objective.batch_spec())
    images = jax.random.normal(jax.random.key(1), (2, SIZE, SIZE, 3))
    one, other = (objective.encode(variables, batch)["pooled"][0] for batch in (images, images[:1]))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_size_and_recipe_of_resnet_50():
    config = mim_jax.load_config(str(ROOT / "configs/mfm_resnet50_in1k.py"))
    objective = mim_jax.create(config)
    shapes = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())["params"]
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert count(shapes) == 29_802_560 and count(shapes["encoder"]) == 23_508_032
    assert config.frequency.low_pass_probability == 0.3
