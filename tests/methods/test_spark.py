import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.interop import WeightsWarning, import_with_report
from mim_jax.models.convnext import convnext_size
from mim_jax.models.resnet import resnet_size
from mim_jax.training.duration import RunLength
from mim_jax.training.paths import LAYERED, leaf_names, matches
from mim_jax.training.schedules import learning_rate_schedule, peak_learning_rate, weight_decay_schedule
from tests.tiny import ROOT, clock
from tools import spark_peer as peer

LAYOUT = "keyu-tian/SparK"
BATCH, SIZE, GRID, KEEP = 2, 96, 3, 4
# Of images and masks: one with which no number is within rounding of the kink of a ReLU that much hangs on.
SEED = 9
COMMON = dict(method="spark", image_size=SIZE, decoder=dict(width=32))
RESNET = dict(backbone="resnet", depths=(1, 3, 1, 1), widths=(4, 6, 8, 10), stem_width=4)
CONVNEXT = dict(backbone="convnext", depths=(1, 2, 1, 1), widths=(8, 12, 16, 32))  # as wide as the decoder: CNX-S
CASES = {
    "resnet": dict(
        config={**COMMON, "model": RESNET},
        shapes=peer.resnet_shapes(4, RESNET["depths"], RESNET["widths"]) | peer.rest_shapes((16, 24, 32, 40), 32, True),
    ),
    "convnext": dict(
        config={**COMMON, "model": CONVNEXT, "densify_norm": "layer_norm"},
        shapes=peer.convnext_shapes(CONVNEXT["depths"], CONVNEXT["widths"])
        | peer.rest_shapes(CONVNEXT["widths"], 32, False),
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A small model with the peer's weights: what it computes from injected masks; and the peer in float64."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
    noise = torch.rand(BATCH, GRID * GRID, generator=generator)
    active = torch.zeros(BATCH, GRID * GRID, dtype=torch.bool).scatter_(1, noise.argsort(1)[:, :KEEP], True)
    active = active.view(BATCH, 1, GRID, GRID)

    case = types.SimpleNamespace(active=active, images=images, network=getattr(peer, request.param))
    case.state = peer.random_state(CASES[request.param]["shapes"])
    case.trained = peer.trainable({name: x.double() for name, x in case.state.items()})
    case.expected = peer.spark(case.trained, images.double(), active, case.network)
    case.expected[1].backward()

    case.objective = mim_jax.create(CASES[request.param]["config"])
    checkpoint = {"module": {**case.state, "config": {"mask_ratio": 0.6}}, "epoch": 1600}
    case.variables = mim_jax.import_weights(case.objective, checkpoint, LAYOUT, strict=True)
    case.batch = {"image": images.permute(0, 2, 3, 1).numpy()}
    case.masks = mim_jax.TokenMask.from_noise(noise.numpy(), KEEP)

    def loss(params, image):
        variables = {**case.variables, "params": params}
        return case.objective.loss(variables, {"image": image}, case.masks, None, clock())

    case.gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (case.value, case.aux), case.gradients = case.gradient(case.variables["params"], case.batch["image"])
    yield case
    jax.clear_caches()


def assert_close(ours, theirs, tolerance, message=""):
    """Within `tolerance` of the largest number."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, message
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max(), message


def exported(case, tmp_path, **parts):
    """Values by official name, with other `params` or `state`."""
    return load_file(mim_jax.export_weights(case.objective, {**case.variables, **parts}, tmp_path, LAYOUT))


def hidden_pixels(case):
    return ~peer.spread(case.active, SIZE)[:, 0].numpy()


def test_the_loss_equals_the_official_computation(case):
    prediction, loss = (x.detach() for x in case.expected)
    assert_close(case.aux["prediction"], peer.patchify(prediction, 32), 1e-5)
    assert_close(case.value, loss, 1e-6)
    assert float(case.aux["terms"]["reconstruction"]) == float(case.value)


def test_the_gradient_of_every_parameter_equals_the_official_one(case, tmp_path):
    ours = exported(case, tmp_path, params=case.gradients)
    theirs = {name: x.grad for name, x in case.trained.items() if x.requires_grad}
    for name, gradient in theirs.items():
        assert gradient.abs().max() > 0, name
        assert_close(ours[name], gradient, 1e-4, name)


def test_running_statistics_after_a_step_equal_the_official_ones(case, tmp_path):
    ours = exported(case, tmp_path, state=case.aux["state"])
    names = [name for name in case.state if "running" in name]
    assert len(names) >= 20
    for name in names:
        assert_close(ours[name], case.trained[name], 1e-5, name)
        assert not np.allclose(ours[name], case.state[name], rtol=1e-3), name


def test_the_checkpoint_goes_out_as_it_came_in(case, tmp_path):
    ours = exported(case, tmp_path)
    assert ours.keys() == case.state.keys()
    for name, tensor in case.state.items():
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)


def test_the_encoder_may_have_its_plain_names(case):
    """Those of the file with the encoder alone."""
    plain = {name.removeprefix(peer.ENCODER): x for name, x in case.state.items()}
    counts = {f"{name[:-12]}num_batches_tracked": np.int64(7) for name in plain if name.endswith("running_mean")}
    variables = mim_jax.import_weights(case.objective, {**plain, **counts}, LAYOUT, strict=True)
    jax.tree.map(np.testing.assert_array_equal, variables, case.variables)


@pytest.mark.parametrize("prefix", ["", peer.ENCODER], ids=["plain", "prefixed"])
def test_a_classifier_takes_the_encoder_under_either_name(prefix):
    task, shapes = fine_tuned("resnet")
    state = peer.random_state({f"{prefix}{name}" if name[:2] != "fc" else name: x for name, x in shapes.items()})
    variables = mim_jax.import_weights(task, {"module": state}, LAYOUT, strict=True)
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], state["fc.weight"].T)
    kernel = variables["params"]["encoder"]["stage2"]["blocks"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel[1, 0, 0], state[f"{prefix}layer2.2.conv1.weight"][:, :, 0, 0].T)


def fine_tuned(backbone, **config):
    """A small classifier, and names and shapes of its official checkpoint."""
    model = dict(resnet=RESNET, convnext=CONVNEXT)[backbone]
    if backbone == "resnet":
        shapes = peer.resnet_shapes(4, RESNET["depths"], RESNET["widths"], "") | {"fc.weight": (5, 40), "fc.bias": (5,)}
    else:
        shapes = peer.convnext_shapes(CONVNEXT["depths"], CONVNEXT["widths"], "")
        shapes |= {"norm.weight": (32,), "norm.bias": (32,), "head.weight": (5, 32), "head.bias": (5,)}
    config = dict(task="classification", image_size=SIZE, num_classes=5, model=model, **config)
    return mim_jax.create(config), shapes


@pytest.mark.parametrize("backbone", ["resnet", "convnext"])
def test_a_fine_tuned_checkpoint_brings_its_classifier_and_its_average(backbone, tmp_path):
    task, shapes = fine_tuned(backbone, ema_decay=0.9)
    module, average = peer.random_state(shapes), peer.random_state(shapes, seed=1)
    checkpoint = {"module": module, "ema": average, "epoch": 299, "is_pretrain": False}
    variables = mim_jax.import_weights(task, checkpoint, LAYOUT, strict=True)
    out = load_file(mim_jax.export_weights(task, variables, tmp_path, LAYOUT))
    expected = {**module, **{f"ema.{name}": tensor for name, tensor in average.items()}}
    assert out.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(out[name], tensor, err_msg=name)
    np.testing.assert_array_equal(
        variables["teacher"]["head"]["bias"], average["fc.bias" if backbone == "resnet" else "head.bias"]
    )
    # A classifier without an average, and pre-training, take what is trained.
    with pytest.warns(WeightsWarning, match="no average of the weights is kept here"):
        plain = mim_jax.import_weights(fine_tuned(backbone)[0], checkpoint, LAYOUT)
    jax.tree.map(np.testing.assert_array_equal, plain["params"], variables["params"])
    with pytest.warns(WeightsWarning):
        encoder, report = import_with_report(mim_jax.create(CASES[backbone]["config"]), checkpoint, LAYOUT)
    assert "a classifier has no use in pre-training" in report.unused
    jax.tree.map(np.testing.assert_array_equal, encoder["params"]["encoder"], variables["params"]["encoder"])


def test_without_an_average_in_the_file_it_starts_as_a_copy_with_its_statistics():
    task, shapes = fine_tuned("resnet", ema_decay=0.9)
    with pytest.warns(WeightsWarning):
        variables, report = import_with_report(task, peer.random_state(shapes), LAYOUT, parts=("encoder",))
    assert report.copied["state/averaged/encoder"] == "state/encoder"
    state = variables["state"]
    jax.tree.map(np.testing.assert_array_equal, state["averaged"]["encoder"], state["encoder"])
    assert abs(state["encoder"]["stem_norm"]["mean"]).max() > 0


def test_the_intact_image_is_encoded_by_the_dense_network_with_running_statistics(case):
    with torch.no_grad():
        maps = case.network(case.state, case.images, None, False)
    features = jax.jit(case.objective.encode)(case.variables, case.batch["image"])
    assert_close(features["tokens"], maps[-1].flatten(2).transpose(1, 2), 1e-5)
    assert_close(features["pooled"], maps[-1].mean((2, 3)), 1e-5)


def test_latents_are_zero_at_hidden_sites_and_nowhere_else(case):
    visible = ~np.asarray(case.masks.mask)
    np.testing.assert_array_equal(visible, case.active.flatten(1).numpy())
    latent = np.asarray(case.aux["latent"])
    np.testing.assert_array_equal(np.any(latent != 0, axis=-1), visible)
    means = [image[chosen].mean(axis=0) for image, chosen in zip(latent, visible, strict=True)]
    np.testing.assert_allclose(case.aux["pooled"], means, rtol=1e-5, atol=1e-6)


def test_hidden_pixels_are_a_target_and_no_input(case):
    other = np.where(hidden_pixels(case)[..., None], 3.0 - case.batch["image"], case.batch["image"])
    (_, aux), _ = case.gradient(case.variables["params"], other)
    np.testing.assert_array_equal(aux["prediction"], case.aux["prediction"])
    assert not np.allclose(aux["target"], case.aux["target"])


def test_only_hidden_patches_count(case):
    error = np.square(np.asarray(case.aux["prediction"]) - case.aux["target"]).mean(axis=-1)
    assert float(case.value) == pytest.approx(error[np.asarray(case.masks.mask)].mean(), rel=1e-5)


def test_with_nothing_hidden_there_is_no_loss():
    """The official code adds 1e-8 to the number of hidden patches."""
    model = dict(backbone="convnext", depths=(1, 1), widths=(4, 8))
    config = dict(method="spark", image_size=16, model=model, densify_norm="layer_norm", decoder=dict(width=8))
    objective = mim_jax.create(config)
    batch = {"image": jax.random.normal(jax.random.key(1), (2, 16, 16, 3))}
    variables = objective.init(jax.random.key(0), batch)
    masks = mim_jax.TokenMask.from_bool(jnp.zeros((2, 4), bool))

    def loss(params):
        return objective.loss({**variables, "params": params}, batch, masks, None, clock())[0]

    value, gradients = jax.jit(jax.value_and_grad(loss))(variables["params"])
    assert float(value) == 0.0
    assert not any(np.any(gradient) for gradient in jax.tree.leaves(gradients))  # and none is NaN


def test_predicting_nothing_costs_almost_one(case):
    """Each patch's target has mean 0 and an unbiased variance of 1."""
    decoder = case.variables["params"]["decoder"]
    nothing = {**decoder, "prediction": jax.tree.map(jnp.zeros_like, decoder["prediction"])}
    (value, _), _ = case.gradient({**case.variables["params"], "decoder": nothing}, case.batch["image"])
    count = 32 * 32 * 3
    assert float(value) == pytest.approx((count - 1) / count, rel=1e-5)


def test_reconstructions_keep_what_was_visible(case):
    pictures = jax.jit(case.objective.reconstruct)(case.variables, case.batch, case.masks)
    hidden = hidden_pixels(case)
    np.testing.assert_array_equal(pictures["reconstruction"][~hidden], case.batch["image"][~hidden])
    assert not np.allclose(pictures["reconstruction"][hidden], case.batch["image"][hidden])
    assert not pictures["masked"][hidden].any()


def test_lamb_sees_every_official_tensor_by_itself(case):
    names, leaves = leaf_names(case.variables["params"]), jax.tree.leaves(case.variables["params"])
    groups = sum(len(leaf) if LAYERED in name else 1 for name, leaf in zip(names, leaves, strict=True))
    assert groups == sum("running" not in name for name in case.state)


def test_twenty_of_forty_nine_patches_are_visible():
    objective = load("spark_resnet50_in1k")
    masks = objective.masks({}, objective.batch_spec(3), jax.random.key(0), clock())
    assert masks.mask.shape == (3, 49) and masks.num_keep == 20
    np.testing.assert_array_equal(masks.mask.sum(axis=1), [29] * 3)


def load(name, **model):
    overrides = {f"model.{key}": value for key, value in model.items()}
    return mim_jax.create(mim_jax.load_config(str(ROOT / "configs" / f"{name}.py"), overrides))


@pytest.mark.parametrize(
    ("name", "size", "encoder", "densify", "total"),
    [
        ("spark_resnet50_in1k", resnet_size("50"), 23_508_032, 6_230_688, 52_921_835),
        ("spark_resnet50_in1k", resnet_size("101"), 42_500_160, 6_230_688, 71_913_963),
        ("spark_resnet50_in1k", resnet_size("152"), 58_143_808, 6_230_688, 87_557_611),
        ("spark_resnet50_in1k", resnet_size("200"), 62_624_832, 6_230_688, 92_038_635),
        ("spark_convnext_b_in1k", convnext_size("S"), 49_453_152, 1_746_816, 74_383_083),
        ("spark_convnext_b_in1k", convnext_size("B"), 87_564_416, 3_116_064, 113_863_595),
        ("spark_convnext_b_in1k", convnext_size("L"), 196_227_264, 4_673_376, 224_083_755),
    ],
)
def test_parameter_counts_are_the_sheets(name, size, encoder, densify, total):
    objective = load(name, **size)
    variables = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())
    counts = {part: sum(x.size for x in jax.tree.leaves(tree)) for part, tree in variables["params"].items()}
    assert counts == {"encoder": encoder, "densify": densify, "decoder": 23_183_115}
    assert sum(counts.values()) == total


@pytest.mark.parametrize("name", ["spark_resnet50_in1k", "spark_convnext_b_in1k"])
def test_vectors_and_mask_tokens_do_not_decay(name):
    objective = load(name)
    params = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())["params"]
    exempt = matches(params, objective.config.optimizer.no_decay, "optimizer.no_decay")
    for path, leaf, free in zip(leaf_names(params), jax.tree.leaves(params), jax.tree.leaves(exempt), strict=True):
        assert free == (leaf.ndim - (LAYERED in path) < 2), path


@pytest.mark.parametrize("name", ["spark_resnet50_in1k", "spark_convnext_b_in1k"])
def test_schedules_are_the_papers(name):
    config = load(name).config
    length = RunLength(1_281_167, config.batch_size)
    total, warmup = length.steps(config.duration, "duration"), length.steps("40 epochs", "warmup")
    rate, decay = learning_rate_schedule(config, total, length), weight_decay_schedule(config, total)
    peak = peak_learning_rate(config)
    assert peak == pytest.approx(3.2e-3)
    steps = [jnp.int32(step) for step in (0, warmup, total - 1)]
    assert [float(rate(step)) / peak for step in steps] == pytest.approx([0.005, 1.0, 0.001], rel=1e-4)
    assert [float(decay(step)) for step in (steps[0], steps[2])] == pytest.approx([0.04, 0.2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"densify_norm": "bn"}, r"densify_norm is 'bn'; choose one of batch_norm, layer_norm"),
        ({"mask_ratio": 0.99}, r"mask_ratio 0.99 keeps 0 of 9"),
        ({"image_size": 100}, r"image_size 100x100"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        mim_jax.create({**CASES["resnet"]["config"], **change})
