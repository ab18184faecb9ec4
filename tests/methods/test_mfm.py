"""MFM and its restoration tasks, against a forward pass written here in PyTorch from the method sheet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.training.duration import RunLength
from mim_jax.training.schedules import learning_rate_schedule, peak_learning_rate
from tests.interop import test_official_layouts as official
from tests.tiny import ROOT, clock

SIZE, PATCH, WIDTH, GRID = 16, official.PATCH, official.WIDTH, official.GRID
LAYOUT = "Jiahao000/MFM"
TINY = dict(
    method="mfm",
    image_size=SIZE,
    model=dict(width=WIDTH, depth=official.DEPTH, heads=official.HEADS, patch_size=PATCH),
    frequency=dict(radius=3.0),
    super_resolution=dict(factor=4),
)
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
KEY = jax.random.key(0)


def make(**config):
    return mim_jax.create({**TINY, **config})


def official_state():
    shapes = {
        "encoder.cls_token": (1, 1, WIDTH),
        "encoder.pos_embed": (1, 1 + GRID * GRID, WIDTH),
        **official.encoder_shapes("encoder."),
        "decoder.0.weight": (PATCH * PATCH * 3, WIDTH, 1, 1),
        "decoder.0.bias": (PATCH * PATCH * 3,),
    }
    for layer in range(official.DEPTH):
        block = f"encoder.blocks.{layer}"
        shapes |= {f"{block}.attn.q_bias": (WIDTH,), f"{block}.attn.v_bias": (WIDTH,)}
        del shapes[f"{block}.attn.qkv.bias"]
    return official.random_state(shapes)


@pytest.fixture(scope="module")
def state():
    return official_state()


@pytest.fixture(scope="module")
def variables(state):
    return mim_jax.import_weights(make(), {"model": state, "epoch": 299}, LAYOUT, strict=True)


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def as_batch(pixels):
    return official.as_batch((pixels - MEAN) / STD)


def as_images(ours):
    return np.asarray(ours).transpose(0, 3, 1, 2)


def predict(state, corrupted):
    """The image that mfm.md, steps 4 and 5, predicts, and the latent."""
    x = official.with_class_token(state, official.embed(state, corrupted, "encoder."), "encoder.")
    x = official.blocks(state, "encoder.blocks", x + state["encoder.pos_embed"], official.HEADS)
    latent = official.norm(state, "encoder.norm", x)
    features = latent[:, 1:].transpose(1, 2).reshape(len(x), WIDTH, GRID, GRID)
    prediction = F.pixel_shuffle(F.conv2d(features, state["decoder.0.weight"], state["decoder.0.bias"]), PATCH)
    return latent, prediction


def distances(prediction, target):
    """l of step 6, over the centred spectrum."""
    a, b = (torch.fft.fftshift(torch.fft.fft2(x, norm="ortho"), dim=(2, 3)) for x in (prediction, target))
    return ((a.real - b.real) ** 2 + (a.imag - b.imag) ** 2 + 1e-12).sqrt()


def frequency_masks():
    """The official M, 1 where a frequency stays, of two low-pass and two high-pass images, `[4, 16, 16]`."""
    rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    low = (rows**2 + columns**2 < 3**2).astype(np.float32)
    return torch.from_numpy(np.stack([low, 1 - low, 1 - low, low]))


def test_frequency_modelling_end_to_end(state, variables, pixels, tmp_path):
    m = frequency_masks()[:, None]
    spectrum = torch.fft.fftshift(torch.fft.fft2(pixels), dim=(2, 3)) * m
    corrupted = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(2, 3))).real.clamp(0, 1)
    latent, prediction = predict(state, (corrupted - MEAN) / STD)
    l = distances(prediction, (pixels - MEAN) / STD)  # noqa: E741
    expected = (l * (1 - m)).sum() / ((1 - m).sum() * 3)

    objective = make()
    masks = jnp.asarray(m[:, 0].numpy())
    loss, aux = jax.jit(objective.loss)(variables, as_batch(pixels), masks, KEY, clock())
    official.assert_equal(as_images(aux["input"]), (corrupted - MEAN) / STD)
    official.assert_equal(aux["latent"], latent)
    official.assert_equal(as_images(aux["prediction"]), prediction)
    official.assert_equal(loss, expected)
    assert set(aux["terms"]) == {"frequency"}
    official.assert_round_trip(objective, variables, LAYOUT, state, tmp_path)


def blur_kernel(size):
    x = torch.arange(size, dtype=torch.float64) - size // 2
    kernel = torch.exp(-0.5 * (x[:, None] ** 2 + x[None, :] ** 2) / 5.0**2)
    return (kernel / kernel.sum()).float()


def restorations():
    """For each restoration: what `masks` would be, and the official corruption of pixels."""
    noise = 75 / 255 * torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(4))
    taps = F.pad(blur_kernel(9).sum(1), (6, 6)).expand(4, -1)  # in the window of the largest size, 21

    def downsample(pixels):
        small = F.interpolate(pixels, size=(4, 4), mode="bicubic").clamp(0, 1)
        return F.interpolate(small, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)

    def blur(pixels):
        padded = F.pad(pixels, (4, 4, 4, 4), mode="reflect")
        return F.conv2d(padded, blur_kernel(9).expand(3, 1, 9, 9), groups=3)

    return {
        "super_resolution": (None, downsample),
        "deblur": (jnp.asarray(taps.numpy()), blur),
        "denoise": (jnp.asarray(noise.permute(0, 2, 3, 1).numpy()), lambda pixels: pixels + noise),
    }


def test_an_official_fine_tuned_model(state, pixels):
    """Its features are averaged, then normalised; it has the names of the encoder without their prefix."""
    generator = torch.Generator().manual_seed(5)
    tuned = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    tuned = {name: value for name, value in tuned.items() if not name.startswith("norm.")}
    shapes = {"fc_norm.weight": (WIDTH,), "fc_norm.bias": (WIDTH,), "head.weight": (5, WIDTH), "head.bias": (5,)}
    tuned |= {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    model = make().config.model.to_dict()
    task = mim_jax.create(dict(task="classification", num_classes=5, image_size=SIZE, model=model))
    variables = mim_jax.import_weights(task, {"model": tuned}, LAYOUT, strict=True)
    x = official.with_class_token(tuned, official.embed(tuned, pixels, ""), "")
    x = official.blocks(tuned, "blocks", x + tuned["pos_embed"], official.HEADS)[:, 1:].mean(dim=1)
    expected = F.linear(official.norm(tuned, "fc_norm", x), tuned["head.weight"], tuned["head.bias"])
    official.assert_equal(jax.jit(task.predict)(variables, official.as_batch(pixels)["image"]), expected)


@pytest.mark.parametrize("corruption", ["super_resolution", "deblur", "denoise"])
def test_restorations_end_to_end(corruption, state, variables, pixels):
    masks, corrupt = restorations()[corruption]
    corrupted = (corrupt(pixels) - MEAN) / STD
    _, prediction = predict(state, corrupted)
    objective = make(corruption=corruption)
    loss, aux = jax.jit(objective.loss)(variables, as_batch(pixels), masks, KEY, clock())
    official.assert_equal(as_images(aux["input"]), corrupted)
    official.assert_equal(as_images(aux["prediction"]), prediction)
    official.assert_equal(loss, distances(prediction, (pixels - MEAN) / STD).mean())


@pytest.mark.parametrize(
    ("corruption", "shape"),
    [("frequency", (4, SIZE, SIZE)), ("deblur", (4, 21)), ("denoise", (4, SIZE, SIZE, 3)), ("super_resolution", None)],
)
def test_masks_are_what_the_corruption_draws(corruption, shape, pixels):
    objective, batch = make(corruption=corruption), as_batch(pixels)
    masks = objective.masks({}, batch, jax.random.key(5), clock())
    assert (None if masks is None else masks.shape) == shape
    corrupted = objective.corrupt(jnp.asarray(batch["image"]), masks)
    assert corrupted.shape == batch["image"].shape
    assert not np.allclose(corrupted, batch["image"], atol=0.01)


def test_the_head_is_a_pixel_shuffle(state, pixels):
    channel, row, column = 1, 2, 3
    bias = torch.zeros(PATCH * PATCH * 3)
    bias[channel * PATCH * PATCH + row * PATCH + column] = 1.0
    one_hot = {"decoder.0.weight": torch.zeros_like(state["decoder.0.weight"]), "decoder.0.bias": bias}
    objective = make()
    lit = mim_jax.import_weights(objective, state | one_hot, LAYOUT)
    masks = objective.masks({}, as_batch(pixels), KEY, clock())
    _, aux = objective.loss(lit, as_batch(pixels), masks, KEY, clock())
    expected = np.zeros((4, SIZE, SIZE, 3), np.float32)
    expected[:, row::PATCH, column::PATCH, channel] = 1.0
    np.testing.assert_array_equal(aux["prediction"], expected)


def test_reconstructions_keep_the_frequencies_that_were_seen(variables, pixels):
    objective, batch = make(), as_batch(pixels)
    m = frequency_masks().numpy()
    pictures = objective.reconstruct(variables, batch, jnp.asarray(m))
    _, aux = objective.loss(variables, batch, jnp.asarray(m), KEY, clock())
    spectra = {
        name: np.fft.fftshift(np.fft.fft2(as_images(picture)), axes=(2, 3)).transpose(0, 2, 3, 1)
        for name, picture in {**pictures, "prediction": aux["prediction"]}.items()
    }
    kept = m == 1
    np.testing.assert_allclose(spectra["reconstruction"][kept], spectra["original"][kept], atol=2e-4)
    np.testing.assert_allclose(spectra["reconstruction"][~kept], spectra["prediction"][~kept], atol=2e-4)
    np.testing.assert_array_equal(pictures["masked"], aux["input"])


def test_a_restoration_shows_the_prediction_itself(variables, pixels):
    objective = make(corruption="super_resolution")
    pictures = objective.reconstruct(variables, as_batch(pixels), None)
    _, aux = objective.loss(variables, as_batch(pixels), None, KEY, clock())
    np.testing.assert_array_equal(pictures["reconstruction"], aux["prediction"])


def test_initial_weights_are_cut_at_one_sigma_and_residual_ones_rescaled():
    objective = make()
    params = jax.jit(lambda: objective.init(KEY, objective.batch_spec(1)))()["params"]
    encoder, blocks = params["encoder"], params["encoder"]["stack"]["blocks"]
    for leaf in (encoder["position"]["table"], encoder["class_token"], encoder["patch_embed"]["projection"]["kernel"]):
        assert 0.015 < np.abs(leaf).max() <= 0.02
    largest = np.abs(np.asarray(blocks["mlp"]["fc2"]["kernel"])).reshape(official.DEPTH, -1).max(axis=1)
    np.testing.assert_allclose(largest, 0.02 / np.sqrt([2.0, 4.0]), rtol=0.02)
    assert 0.2 < np.abs(params["head"]["kernel"]).max() <= 0.25  # PyTorch's default for 16 inputs: 1 / sqrt(16)


@pytest.mark.parametrize(
    ("sizes", "count"), [({}, 86_380_032), (dict(width=384, depth=12, heads=6), 21_956_736)], ids=["B", "S"]
)
def test_parameter_counts_are_the_sheets(sizes, count):
    config = mim_jax.load_config(str(ROOT / "configs" / "mfm_vit_b16_in1k.py"))
    config.model.update(sizes)
    objective = mim_jax.create(config)
    params = jax.eval_shape(objective.init, KEY, objective.batch_spec())["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_the_recipes_learning_rate():
    config = mim_jax.load_config(str(ROOT / "configs" / "mfm_vit_b16_in1k.py:denoise"))
    assert config.corruption == "denoise"
    length = RunLength(1_281_167, config.batch_size)
    total = length.steps(config.duration, "duration")
    rate = learning_rate_schedule(config, total, length)
    warmup = length.steps("20 epochs", "warmup")
    assert peak_learning_rate(config) == pytest.approx(1.2e-3)
    np.testing.assert_allclose([rate(jnp.int32(step)) for step in (0, 1)], [1e-6, 1e-6], rtol=1e-5)
    assert float(rate(jnp.int32(warmup + 1))) == pytest.approx(0.989 * 1.2e-3, rel=1e-3)
    assert float(rate(jnp.int32(total))) == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (dict(corruption="deblurring"), "corruption is 'deblurring'; choose one of frequency"),
        (dict(spectrum=dict(compare="some")), "spectrum.compare"),
        (dict(spectrum=dict(tiles=2)), "spectrum.tiles"),
        (dict(spectrum=dict(tiles=3, compare="all")), "spectrum.tiles 3 does not divide"),
        (dict(super_resolution=dict(factor=3), corruption="super_resolution"), "super_resolution.factor"),
        (dict(frequency=dict(radius=16.0)), "frequency.radius 16.0 keeps 256 of 256"),
    ],
)
def test_settings_that_cannot_work_are_refused(config, key):
    with pytest.raises(ConfigError, match=key):
        make(**config)
