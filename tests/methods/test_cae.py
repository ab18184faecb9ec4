"""CAE against a forward pass written in PyTorch, and the checks of its sheet."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import mim_jax
from mim_jax.errors import ConfigError, DataError
from mim_jax.interop import WeightsWarning
from mim_jax.normalization import IMAGENET
from mim_jax.training.duration import RunLength
from mim_jax.training.paths import leaf_names, matches
from mim_jax.training.schedules import learning_rate_schedule
from tests.interop import test_official_layouts as official
from tests.methods import cae_peer
from tests.models import dvae_peer
from tests.tiny import ROOT, clock, synthetic_batch

LAYOUT = "Atten4Vis/CAE"
CODES = 11
KEY = jax.random.key(0)
MASK = np.argsort(np.random.default_rng(2).random((3, 16)), axis=1) < 8
# Width and heads of the regressor: the encoder's width, and another one that its heads do not divide.
REGRESSORS = {"same": (16, 4), "projected": (12, 5)}


@functools.cache
def make(kind="same", drop_path=0.0, **changes):
    width, heads = REGRESSORS[kind]
    return mim_jax.create(
        dict(
            method="cae",
            image_size=16,
            model=dict(width=16, depth=2, heads=4, patch_size=4, drop_path=drop_path),
            regressor=dict(width=width, depth=2, heads=heads, drop_path=drop_path),
            decoder=dict(depth=2),
            tokenizer=dict(width=16, groups=2, depth=1, num_codes=CODES, weights="random"),
            **changes,
        )
    )


@functools.cache
def state_of(kind):
    return cae_peer.make_state(*REGRESSORS[kind], CODES)


@functools.cache
def tokenizer_state():
    return dvae_peer.make_state("encoder", 8, 2, 1, CODES, 3)


@functools.cache
def variables_of(kind="same"):
    state = state_of(kind)
    source = {"model": state | cae_peer.alignment_state(state), "teacher": tokenizer_state(), "epoch": 299}
    return mim_jax.import_weights(make(kind), source, LAYOUT, strict=True)


@functools.cache
def run(kind="same"):
    """`(variables, batch, masks) -> loss, aux` without drop path, compiled."""
    return jax.jit(lambda *inputs: make(kind).loss(*inputs, None, clock()))


@pytest.fixture(params=REGRESSORS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def token_ids():
    return np.random.default_rng(3).integers(0, CODES, (3, 16)).astype(np.int32)


@pytest.fixture(scope="module")
def batch(images, token_ids):
    return official.as_batch(images, token_ids=token_ids)


@pytest.fixture(scope="module")
def masks():
    return mim_jax.TokenMask.from_bool(MASK)


def pixels_of(mask):
    """`[B, H, W, 1]`: 1 where a patch is in `mask [B, N]`."""
    return np.asarray(mask, np.float32).reshape(-1, 4, 4).repeat(4, axis=1).repeat(4, axis=2)[..., None]


def test_latents_logits_losses_and_every_gradient(kind, images, batch, masks, token_ids, tmp_path):
    state = {name: tensor.clone().requires_grad_() for name, tensor in state_of(kind).items()}
    theirs = cae_peer.cae(state, images, torch.tensor(MASK), torch.tensor(token_ids).long(), REGRESSORS[kind][1])
    latent, regressed, aligned, logits, ce, align = theirs
    (ce + 2 * align).backward()
    variables, objective = variables_of(kind), make(kind)

    def ours(params):
        return objective.loss({**variables, "params": params}, batch, masks, None, clock())

    (loss, aux), gradients = jax.jit(jax.value_and_grad(ours, has_aux=True))(variables["params"])
    for name, expected in (("latent", latent), ("regressed", regressed), ("aligned", aligned), ("prediction", logits)):
        official.assert_equal(aux[name], expected)
    np.testing.assert_array_equal(aux["target"], token_ids[MASK].reshape(3, 8))
    for value, expected in ((aux["terms"]["ce"], ce), (aux["terms"]["align"], align), (loss, ce + 2 * align)):
        official.assert_equal(value, expected)
    accuracy = (logits.argmax(-1).flatten() == torch.tensor(token_ids[MASK])).float().mean()
    np.testing.assert_allclose(aux["metrics"]["accuracy"], accuracy, rtol=1e-6)
    carried = {"params": gradients, "teacher": variables["teacher"]}
    exported = load_file(mim_jax.export_weights(objective, carried, tmp_path, LAYOUT))
    for name, tensor in state.items():
        if not name.endswith("pos_embed"):
            # What is added to all keys alike softmax does not see: of that the gradient is zero but for rounding.
            tolerance = 1e-6 if name.endswith("norm1_k.bias") else 3e-5 * tensor.grad.abs().max().item()
            np.testing.assert_allclose(exported[name], tensor.grad, rtol=0, atol=tolerance, err_msg=name)


def test_checkpoints_go_out_as_they_came_in(kind, tmp_path):
    teacher = {f"teacher.{name}": tensor for name, tensor in tokenizer_state().items()}
    official.assert_round_trip(make(kind), variables_of(kind), LAYOUT, state_of(kind) | teacher, tmp_path)


def test_tasks_take_the_encoder():
    model = dict(width=16, depth=2, heads=4, patch_size=4, position="sincos_rows_first", qkv_bias="qv")
    task = mim_jax.create(
        dict(task="classification", image_size=16, num_classes=3, model={**model, "layer_scale": 0.1, "pool": "class"})
    )
    state = state_of("projected")
    with pytest.warns(WeightsWarning):
        theirs = mim_jax.import_weights(task, {"model": state | cae_peer.alignment_state(state)}, LAYOUT)
    expected = variables_of("projected")["params"]["encoder"]
    jax.tree.map(np.testing.assert_array_equal, theirs["params"]["encoder"], expected)


def test_tokens_are_the_tokenizers_where_the_batch_has_none(images, batch, masks):
    """By itself an image of 16 pixels is resized to 8; one of that size is seen as it is."""
    small = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    shown = official.as_batch((small - mean) / std)["image"]
    ids = dvae_peer.encode(tokenizer_state(), small, 2, 1).argmax(1).flatten(1).numpy()
    _, aux = run()(variables_of(), {"image": batch["image"], "tokenizer_image": shown}, masks)
    np.testing.assert_array_equal(aux["target"], ids[MASK].reshape(3, 8))
    _, aux = run()(variables_of(), {"image": batch["image"]}, masks)
    ids = np.asarray(make().tokenizer(variables_of()["teacher"]["tokenizer"], jnp.asarray(batch["image"])))
    np.testing.assert_array_equal(aux["target"], ids[MASK].reshape(3, 8))


def test_visible_latents_do_not_see_hidden_pixels_nor_targets_visible_ones(kind, batch, masks):
    _, aux = run(kind)(variables_of(kind), batch, masks)
    _, hidden = run(kind)(variables_of(kind), {**batch, "image": batch["image"] + pixels_of(MASK)}, masks)
    _, visible = run(kind)(variables_of(kind), {**batch, "image": batch["image"] + pixels_of(~MASK)}, masks)
    np.testing.assert_array_equal(hidden["latent"], aux["latent"])
    np.testing.assert_array_equal(visible["aligned"], aux["aligned"])
    assert not np.allclose(visible["latent"], aux["latent"]) and not np.allclose(hidden["aligned"], aux["aligned"])


def test_of_swapped_masks_targets_are_visible_latents(batch, masks):
    _, aux = run()(variables_of(), batch, masks)
    _, swapped = run()(variables_of(), batch, mim_jax.TokenMask.from_bool(~MASK))
    np.testing.assert_allclose(swapped["aligned"], aux["latent"][:, 1:], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(aux["aligned"], swapped["latent"][:, 1:], rtol=1e-5, atol=1e-5)


def test_the_target_has_a_drop_path_of_its_own(batch):
    objective = make(drop_path=0.5)
    loss = jax.jit(lambda masks: objective.loss(variables_of(), batch, masks, KEY, clock())[1])
    aux, swapped = (loss(mim_jax.TokenMask.from_bool(mask)) for mask in (MASK, ~MASK))
    # Both encode the same patches, from the same random numbers if these were shared.
    assert not np.allclose(swapped["aligned"], aux["latent"][:, 1:], atol=1e-2)
    _, still = run()(variables_of(), batch, mim_jax.TokenMask.from_bool(MASK))
    assert not np.allclose(aux["aligned"], still["aligned"], atol=1e-2)


def test_no_gradient_takes_the_way_of_the_target(kind, batch, masks):
    weights = np.random.default_rng(5).normal(size=(3, 8, REGRESSORS[kind][0])).astype(np.float32)

    def along(params):
        _, aux = make(kind).loss({**variables_of(kind), "params": params}, batch, masks, None, clock())
        return (aux["aligned"] * weights).sum()

    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.jit(jax.grad(along))(variables_of(kind)["params"])))


def test_the_alignment_term_trains_regressor_and_encoder(batch, masks):
    def align(params):
        return make().loss({**variables_of(), "params": params}, batch, masks, None, clock())[1]["terms"]["align"]

    gradients = jax.jit(jax.grad(align))(variables_of()["params"])
    for part in ("encoder", "regressor"):
        assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients[part]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["decoder"]))


def silent_regressor(variables):
    """`variables` with layer scales of the regressor at zero."""
    regressor = variables["params"]["regressor"]
    blocks = regressor["stack"]["blocks"]
    blocks = {**blocks, **{name: jnp.zeros_like(blocks[name]) for name in ("gamma1", "gamma2")}}
    params = {**variables["params"], "regressor": {**regressor, "stack": {"blocks": blocks}}}
    return {**variables, "params": params}


def layer_norm(x, params):
    centred = np.asarray(x - x.mean(), np.float64)
    return centred / np.sqrt(np.square(centred).mean() + 1e-6) * params["scale"] + params["bias"]


def test_without_its_branches_the_regressor_says_the_same_everywhere(batch, masks):
    variables = silent_regressor(variables_of())
    _, aux = run()(variables, batch, masks)
    regressor = variables["params"]["regressor"]
    x, norms = regressor["mask_token"], regressor["stack"]["blocks"]["norm2"]
    for layer in range(2):
        x = layer_norm(x, jax.tree.map(lambda leaf, layer=layer: leaf[layer], norms))
    expected = np.broadcast_to(layer_norm(x, regressor["norm"]), aux["regressed"].shape)
    np.testing.assert_allclose(aux["regressed"], expected, rtol=1e-5, atol=1e-5)


def test_the_decoder_sees_predicted_latents_alone(batch, masks):
    """Where these are the same for all images, so are the logits, whatever is visible."""
    brighter = {**batch, "image": batch["image"] + pixels_of(~MASK)}
    (_, aux), (_, other) = (run()(silent_regressor(variables_of()), b, masks) for b in (batch, brighter))
    assert not np.allclose(aux["latent"], other["latent"])
    np.testing.assert_array_equal(aux["prediction"], other["prediction"])
    assert np.ptp(np.asarray(aux["prediction"]), axis=1).max() > 0.1  # but they know where they are


def test_without_a_head_all_of_8192_tokens_are_alike(batch, masks):
    tokenizer = dict(width=8, groups=2, depth=1, num_codes=8192, weights="random")
    base = make()
    objective = mim_jax.create({**base.config.to_dict(), "tokenizer": tokenizer})
    variables = jax.jit(lambda: objective.init(KEY, batch))()
    variables["params"]["decoder"]["prediction"] = jax.tree.map(
        jnp.zeros_like, variables["params"]["decoder"]["prediction"]
    )
    _, aux = jax.jit(lambda v: objective.loss(v, batch, masks, None, clock()))(variables)
    assert float(aux["terms"]["ce"]) == pytest.approx(9.0109, abs=5e-5)


def test_exactly_98_patches_are_hidden():
    objective = mim_jax.create(mim_jax.load_config(str(ROOT / "configs/cae_vit_b16_in1k.py")))
    masks = jax.jit(lambda: objective.masks({}, objective.batch_spec(64), KEY, clock()))()
    assert masks.ids_keep.shape == masks.ids_hidden.shape == (64, 98)
    np.testing.assert_array_equal(np.sort(masks.order, axis=1), np.tile(np.arange(196), (64, 1)))
    assert (np.diff(masks.ids_keep, axis=1) > 0).all() and (np.diff(masks.ids_hidden, axis=1) > 0).all()


def test_parameters_start_as_in_the_official_code():
    objective = make("projected")
    params = jax.jit(lambda: objective.init(KEY, synthetic_batch(objective, 2)))()["params"]
    for name, leaf in zip(leaf_names(params), map(np.asarray, jax.tree.leaves(params)), strict=True):
        if name.endswith(("token", "patch_embed/projection/kernel")):
            # A normal of deviation 0.02 cut at one: the deviation left is 0.54 of it.
            assert np.abs(leaf).max() <= 0.02 and (leaf.size < 100 or leaf.std() == pytest.approx(0.0108, rel=0.1))
        elif name.endswith("bias"):
            assert not leaf.any()
        elif name.endswith("scale"):
            assert (leaf == 1.0).all()
        elif "gamma" in name:
            np.testing.assert_allclose(leaf, 0.1, rtol=1e-6)
        else:  # xavier-uniform of the official Linears, query, key and value of self-attention being one
            stacked = "stack/blocks/" in name
            shape = leaf.shape[stacked:]
            fan_in = math.prod(shape[:-1]) if "/out/" in name else shape[0]
            fan_out = shape[-1] if "/out/" in name else math.prod(shape[1:])
            limit = math.sqrt(6 / (fan_in + fan_out))
            assert 0.9 * limit < np.abs(leaf).max() <= limit, name


@pytest.mark.parametrize(
    ("config", "sizes", "total", "encoder"),
    [
        ("cae_vit_b16_in1k", {}, 148_681_472, 85_656_576),
        ("cae_vit_l16_in1k", {}, 366_938_112, 303_124_480),
        ("cae_vit_b16_in1k", dict(width=192, depth=12, heads=12), 68_663_552, 5_488_896),
    ],
)
def test_parameter_counts_are_the_sheets(config, sizes, total, encoder):
    config = mim_jax.load_config(str(ROOT / f"configs/{config}.py"))
    config.model.update(sizes)
    objective = mim_jax.create(config)
    variables = jax.eval_shape(objective.init, KEY, objective.batch_spec())
    count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in variables["params"].items()}
    assert (sum(count.values()), count["encoder"]) == (total, encoder)
    assert count["regressor"] == 28_368_384 + 768 and count["decoder"] == 34_655_744


def test_the_regressor_may_be_wider_than_its_heads():
    config = mim_jax.load_config(str(ROOT / "configs/cae_vit_l16_in1k.py"), {"regressor.width": 1024})
    objective = mim_jax.create(config)
    params = jax.eval_shape(objective.init, KEY, objective.batch_spec())["params"]
    assert params["regressor"]["stack"]["blocks"]["cross_attention"]["query"]["kernel"].shape == (4, 1024, 12, 85)
    assert params["decoder"]["stack"]["blocks"]["attention"]["qkv"]["kernel"].shape == (4, 1024, 3, 12, 85)
    assert "projection" not in params


def test_the_large_recipe_is_what_its_broken_command_runs():
    config = mim_jax.load_config(str(ROOT / "configs/cae_vit_l16_in1k.py"))
    assert (config.model.layer_scale, config.regressor.layer_scale) == (1e-5, 0.1)
    assert (config.model.width, config.regressor.width, config.regressor.heads) == (1024, 768, 12)


def test_token_ids_of_another_grid_are_refused():
    objective = make()
    batch = {**objective.batch_spec(2), "token_ids": jax.ShapeDtypeStruct((2, 9), jnp.int32)}
    with pytest.raises(DataError, match=r"token_ids have shape \(2, 9\); give one for each patch, \(2, 16\)"):
        objective._token_ids({}, batch)


def test_the_recipe_is_the_official_one():
    config = mim_jax.load_config(str(ROOT / "configs/cae_vit_b16_in1k.py"))
    length = RunLength(1_281_167, config.batch_size)
    rate = learning_rate_schedule(config, length.steps(config.duration, "duration"), length)
    warmup = length.steps("40 epochs", "schedule.warmup")
    steps = (0, 1, warmup - 1, warmup, length.steps("1600 epochs", "duration"))
    expected = (0.0, 1.5e-3 / (warmup - 1), 1.5e-3, 1.5e-3, 1e-5)
    np.testing.assert_allclose([float(rate(step)) for step in steps], expected, rtol=1e-5)
    params = jax.eval_shape(make("projected").init, KEY, make().batch_spec())["params"]
    exempt = matches(params, config.optimizer.no_decay, "optimizer.no_decay")
    decayed = {n for n, e in zip(leaf_names(params), jax.tree.leaves(exempt), strict=True) if not e}
    tokens = {"encoder/class_token", "regressor/mask_token"}
    assert tokens < decayed and all(name.endswith("kernel") for name in decayed - tokens)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"regressor.depth": 0}, r"regressor\.depth is 0"),
        ({"regressor.width": 18}, r"regressor\.width is 18"),
        ({"regressor.heads": 0}, r"regressor\.heads is 0"),
        ({"regressor.drop_path": 1.0}, r"regressor\.drop_path is 1\.0"),
        ({"decoder.depth": 0}, r"decoder\.depth is 0"),
        ({"model.relative_bias": True}, "relative_bias is True"),
        ({"tokenizer.groups": 0}, r"tokenizer\.groups is 0"),
        ({"mask_ratio": 1.0}, "mask_ratio is 1.0"),
    ],
)
def test_bad_values_are_refused_before_any_computation(changes, match):
    config = mim_jax.load_config(str(ROOT / "configs/cae_fashion_mnist.py"), changes)
    with pytest.raises(ConfigError, match=match):
        mim_jax.create(config)
