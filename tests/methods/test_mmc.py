import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.layers.patches import patchify
from mim_jax.masking.corruption import CorruptedViews, Corruption
from mim_jax.masking.token_mask import TokenMask
from tests.interop import test_official_layouts as official
from tests.tiny import ROOT, clock, synthetic_batch

IMAGES, TOKENS, KEEP = 6, 16, 6
HIDDEN, OUTPUT, COUNT, MLP, BOTTLENECK = 12, 8, 10, 14, 7
TINY = dict(
    method="mmc",
    image_size=16,
    model=dict(width=16, depth=2, heads=4, patch_size=4),
    decoder=dict(width=8, depth=1, heads=2),
    projector=dict(hidden=HIDDEN, output=OUTPUT),
    prototypes=dict(count=COUNT, hidden=MLP, bottleneck=BOTTLENECK),
)
STATISTICS = {"projector.1": HIDDEN, "projector.4": OUTPUT, "predictor.1": HIDDEN}


def make(**changes):
    return mim_jax.create({**TINY, **changes})


@pytest.fixture(scope="module")
def mmc():
    return make()


@pytest.fixture(scope="module")
def batch(mmc):
    return synthetic_batch(mmc, IMAGES)


@pytest.fixture(scope="module")
def masks():
    noise = np.random.default_rng(2).random((2, IMAGES, TOKENS)).astype(np.float32)
    return CorruptedViews(*(Corruption.of(TokenMask.from_noise(view, KEEP)) for view in noise))


# A network in PyTorch's names: MAE's encoder, the head of SimMIM, DINO's head, MoCo v3's projector and predictor.


def network_state(seed):
    shapes = {
        **official.linear_shapes("head", 48, 16),
        **official.linear_shapes("prototypes.0", MLP, 16),
        **official.linear_shapes("prototypes.2", MLP, MLP),
        **official.linear_shapes("prototypes.4", BOTTLENECK, MLP),
        "prototypes.last.weight": (COUNT, BOTTLENECK),
        "projector.0.weight": (HIDDEN, 16),
        **official.norm_shapes("projector.1", HIDDEN),
        "projector.3.weight": (OUTPUT, HIDDEN),
        "predictor.0.weight": (HIDDEN, OUTPUT),
        **official.norm_shapes("predictor.1", HIDDEN),
        "predictor.3.weight": (OUTPUT, HIDDEN),
        "mask_token": (1, 1, 16),
        **{f"{name}.running_mean": (width,) for name, width in STATISTICS.items()},
        **{f"{name}.running_var": (width,) for name, width in STATISTICS.items()},
    }
    mae = official.mae_state()
    state = official.random_state({name: tensor.shape for name, tensor in mae.items()} | shapes, seed)
    state |= {name: tensor for name, tensor in mae.items() if name.endswith("pos_embed")}
    return state | {name: tensor.abs() + 0.5 for name, tensor in state.items() if name.endswith("running_var")}


@pytest.fixture(scope="module")
def states():
    """Student and teacher."""
    return network_state(0), network_state(1)


def carry_over(state):
    """The parameters of a network, by hand; the encoder by way of MAE's layout."""
    mae = mim_jax.create({**{k: TINY[k] for k in ("image_size", "model", "decoder")}, "method": "mae"})
    names = official.mae_state().keys()
    decoder_token = {"mask_token": torch.zeros(1, 1, 8)}
    weights = {name: state[name] for name in names if "decoder" not in name} | decoder_token
    weights |= {name: tensor for name, tensor in official.mae_state().items() if "decoder" in name}
    encoder = mim_jax.import_weights(mae, {"model": weights}, "facebookresearch/mae")["params"]["encoder"]
    dense = lambda name: (
        {"kernel": jnp.asarray(state[f"{name}.weight"].numpy().T)}
        | ({"bias": jnp.asarray(state[f"{name}.bias"].numpy())} if f"{name}.bias" in state else {})
    )
    mlp = lambda name: {
        "fc1": dense(f"{name}.0"),
        "scale": jnp.asarray(state[f"{name}.1.weight"].numpy()),
        "bias": jnp.asarray(state[f"{name}.1.bias"].numpy()),
        "fc2": dense(f"{name}.3"),
    }
    prototypes = {f"fc{k}": dense(f"prototypes.{2 * k - 2}") for k in (1, 2, 3)}
    return {
        "encoder": {**encoder, "mask_token": jnp.asarray(state["mask_token"].numpy()[0, 0])},
        "head": dense("head"),
        "prototypes": {**prototypes, "prototypes": jnp.asarray(state["prototypes.last.weight"].numpy().T)},
        "projector": mlp("projector"),
        "predictor": mlp("predictor"),
    }


@pytest.fixture(scope="module")
def variables(mmc, batch, states):
    params, teacher = map(carry_over, states)
    running = {
        ours: {
            key: jnp.asarray(states[0][f"{theirs}.running_{name}"].numpy())
            for key, name in (("mean", "mean"), ("variance", "var"))
        }
        for ours, theirs in zip(("projector", "output", "predictor"), STATISTICS, strict=True)
    }
    state = {f"{name}_statistics": value for name, value in running.items()}
    state["centre"] = 0.3 * jax.random.normal(jax.random.key(5), (COUNT,))
    variables = {
        "params": params,
        "teacher": {name: teacher[name] for name in ("encoder", "prototypes", "projector")},
        "state": state,
    }
    template = jax.eval_shape(mmc.init, jax.random.key(0), batch)
    jax.tree.map(lambda ours, spec: ours.shape == spec.shape or pytest.fail(str(spec)), variables, template)
    return variables


@pytest.fixture(scope="module")
def loss(mmc):
    return jax.jit(lambda v, b, m: mmc.loss(v, b, m, jax.random.key(0), clock()))


def torch_encode(state, images, hidden=None):
    x = official.embed(state, images)
    if hidden is not None:
        x = torch.where(hidden[..., None], state["mask_token"], x)
    x = x + state["pos_embed"][:, 1:]
    x = torch.cat([(state["cls_token"] + state["pos_embed"][:, :1]).expand(len(x), -1, -1), x], dim=1)
    return official.norm(state, "norm", official.blocks(state, "blocks", x, 4))


def torch_batch_norm(state, name, x, running, affine=True):
    weights = (state[f"{name}.weight"], state[f"{name}.bias"]) if affine else (None, None)
    return F.batch_norm(x, running[f"{name}.running_mean"], running[f"{name}.running_var"], *weights, True, 0.1, 1e-5)


def torch_mlp(state, name, x, running):
    x = F.linear(x, state[f"{name}.0.weight"])
    return F.linear(torch_batch_norm(state, f"{name}.1", x, running).relu(), state[f"{name}.3.weight"])


def torch_project(state, x, running):
    return torch_batch_norm(state, "projector.4", torch_mlp(state, "projector", x, running), running, affine=False)


def torch_prototypes(state, x):
    for layer in (0, 2, 4):
        x = official.linear(state, f"prototypes.{layer}", x if layer == 0 else F.gelu(x))
    return F.normalize(x, dim=-1) @ F.normalize(state["prototypes.last.weight"], dim=1).T


def torch_mmc(student, teacher, views, hidden, centre, target_kind):
    """Steps 2 to 5 of the sheet: L_mim, L_distil, L_con and the new centre; running statistics are moved."""
    running = {name: tensor for name, tensor in student.items() if "running" in name}
    scratch = {name: tensor.clone() for name, tensor in running.items()}
    mim, distil, queries, keys, seen = [], [], [], [], []
    for images, mask in zip(views, hidden, strict=True):
        own, intact = torch_encode(student, images, mask), torch_encode(teacher, images)
        patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(IMAGES, TOKENS, -1)
        mim.append((official.linear(student, "head", own[:, 1:]) - patches).abs()[mask].mean())
        raw = torch_prototypes(teacher, intact)
        raw = raw[:, :1].expand(-1, TOKENS, -1) if target_kind == "class" else raw[:, 1:]
        target = ((raw - centre) / 0.04).softmax(-1)
        log_share = (torch_prototypes(student, own[:, 1:]) / 0.1).log_softmax(-1)
        distil.append(-(target * log_share).sum(-1)[mask].mean())
        seen.append(raw[mask] if target_kind == "patch" else raw[:, 0])
        query = torch_project(student, own[:, 0], running)
        queries.append(torch_mlp(student, "predictor", query, running))
        keys.append(torch_project(teacher, intact[:, 0], scratch))
    contrast = []
    for query, key in zip(queries, keys[::-1], strict=True):
        logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / 0.2
        contrast.append(2 * 0.2 * F.cross_entropy(logits, torch.arange(IMAGES)))
    terms = {"mim": sum(mim) / 2, "distil": sum(distil) / 2, "contrast": sum(contrast) / 2}
    return terms, 0.9 * centre + 0.1 * torch.cat(seen).mean(0)


@pytest.mark.parametrize("kind", ["class", "patch"])
def test_terms_centre_and_statistics_equal_pytorchs(kind, variables, states, batch, masks, loss):
    student = {name: tensor.clone() for name, tensor in states[0].items()}
    views = [torch.from_numpy(np.array(batch[name])).permute(0, 3, 1, 2) for name in ("image", "view2")]
    hidden = [torch.from_numpy(np.array(view.hidden.mask)) for view in masks]
    centre = torch.from_numpy(np.array(variables["state"]["centre"]))
    expected, moved = torch_mmc(student, states[1], views, hidden, centre, kind)
    if kind == "patch":
        objective = make(distil_target="patch")
        loss = jax.jit(lambda v, b, m: objective.loss(v, b, m, None, clock()))
    value, aux = loss(variables, batch, masks)
    for name, term in expected.items():
        np.testing.assert_allclose(aux["terms"][name], term, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(value, sum(expected.values()), rtol=1e-5)
    np.testing.assert_allclose(aux["state"]["centre"], moved, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(("projector", "output", "predictor"), STATISTICS, strict=True):
        statistics = aux["state"][f"{ours}_statistics"]
        np.testing.assert_allclose(statistics["mean"], student[f"{theirs}.running_mean"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(statistics["variance"], student[f"{theirs}.running_var"], rtol=1e-4)


@pytest.mark.parametrize("kind", ["class", "patch"])
def test_every_gradient_is_pytorchs(kind, variables, states, batch, masks):
    fixed = ("pos_embed", "running")
    student = {name: t.clone().requires_grad_(not any(x in name for x in fixed)) for name, t in states[0].items()}
    views = [torch.from_numpy(np.array(batch[name])).permute(0, 3, 1, 2) for name in ("image", "view2")]
    hidden = [torch.from_numpy(np.array(view.hidden.mask)) for view in masks]
    centre = torch.from_numpy(np.array(variables["state"]["centre"]))
    sum(torch_mmc(student, states[1], views, hidden, centre, kind)[0].values()).backward()
    objective = make(distil_target=kind)

    def value(params):
        return objective.loss({**variables, "params": params}, batch, masks, None, clock())[0]

    ours = jax.jit(jax.grad(value))(variables["params"])
    theirs = carry_over({name: t if t.grad is None else t.grad for name, t in student.items()})
    # By the largest gradient of a part: those of key biases are rounding alone.
    for part, gradients in theirs.items():
        scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5 * scale, err_msg=part)
        jax.tree.map(close, ours[part], gradients)


@pytest.mark.parametrize("target", ["class", "patch"])
def test_different_counts_in_each_image_run_over_all_tokens_alike(variables, batch, masks, target):
    """Masks that do not say that all rows hide equally many give the same loss by the longer way."""
    objective = make(distil_target=target)
    loss = jax.jit(lambda v, b, m: objective.loss(v, b, m, jax.random.key(0), clock()))
    vague = [TokenMask(mask=view.hidden.mask, order=view.hidden.order, num_keep=None) for view in masks]
    value, aux = loss(variables, batch, masks)
    other, theirs = loss(variables, batch, vague)
    np.testing.assert_allclose(value, other, rtol=1e-5)
    np.testing.assert_allclose(aux["state"]["centre"], theirs["state"]["centre"], rtol=1e-5)
    uneven = TokenMask.from_bool(np.arange(TOKENS) < np.arange(3, 3 + IMAGES)[:, None])
    assert uneven.num_keep is None and np.isfinite(loss(variables, batch, [uneven, uneven])[0])


def test_parameter_counts():
    objective = mim_jax.create(mim_jax.load_config(str(ROOT / "configs" / "mmc_vit_s16_in1k.py")))
    variables = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())
    count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in variables["params"].items()}
    # The sheet's 21.7 M counts positions, which are fixed here.
    assert count["encoder"] - 384 + 197 * 384 == 21_665_664
    assert count["projector"] == 384 * 1024 + 2 * 1024 + 1024 * 256
    assert count["predictor"] == 256 * 1024 + 2 * 1024 + 1024 * 256
    assert count["prototypes"] == 384 * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * 256 + 256 + 256 * 8192
    assert count["head"] == 385 * 768
    assert variables["teacher"].keys() == {"encoder", "prototypes", "projector"}


def test_every_linear_layer_starts_as_maes(mmc, batch):
    """Xavier-uniform and without a bias, the head of pixels too, which in SimMIM starts as PyTorch's convolutions."""
    params = jax.jit(lambda: mmc.init(jax.random.key(0), batch))()["params"]
    parts = {name: params[name] for name in ("head", "projector", "predictor", "prototypes")}
    leaves = jax.tree_util.tree_leaves_with_path(parts)
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.ndim == 2:
            limit = math.sqrt(6 / sum(leaf.shape))
            assert 0.9 * limit < float(np.abs(leaf).max()) <= limit, name
        else:
            assert np.unique(leaf).tolist() == [float(name.endswith("scale"))], name


def is_zero(tree):
    return not any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree))


def test_each_term_trains_its_own_parts_and_none_the_teacher(mmc, variables, batch, masks):
    trained = {"mim": {"head"}, "distil": {"prototypes"}, "contrast": {"projector", "predictor"}}

    def terms(given):
        return mmc.loss({**variables, **given}, batch, masks, None, clock())[1]["terms"]

    gradients = jax.jit(jax.jacrev(terms))({name: variables[name] for name in ("params", "teacher")})
    for name, parts in trained.items():
        assert is_zero(gradients[name]["teacher"])
        reached = {part for part, tree in gradients[name]["params"].items() if not is_zero(tree)}
        assert reached == {"encoder", *parts}


def test_momentum_one_freezes_the_teacher_and_zero_copies(variables):
    for momentum, source in ((1.0, "teacher"), (0.0, "params")):
        objective = make(ema_momentum=momentum, ema_momentum_end=momentum)
        updated = jax.jit(objective.update)(variables, clock(3))["teacher"]
        expected = {name: variables[source][name] for name in updated}
        jax.tree.map(np.testing.assert_array_equal, updated, expected)


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.996), (4, 0.998), (8, 1.0)])
def test_momentum_rises_along_half_a_cosine(mmc, variables, step, momentum):
    updated = jax.jit(mmc.update)(variables, clock(step, 8))["teacher"]
    student = {name: variables["params"][name] for name in updated}
    expected = jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, variables["teacher"], student)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), updated, expected)


def test_contrast_of_matched_orthonormal_features_is_the_closed_form(mmc, variables, monkeypatch):
    """`_project` and the predictor out of the way, class tokens are what is contrasted."""
    tokens = jnp.eye(IMAGES, 16)[:, None]
    monkeypatch.setattr(mmc, "_project", lambda params, x, statistics: (x, statistics))
    monkeypatch.setattr(type(mmc.predictor), "apply", lambda self, params, x, statistics, train: (x, statistics))
    value, _ = mmc._contrast(variables, [tokens, tokens], [tokens, tokens])
    assert float(value) == pytest.approx(0.4 * math.log(1 + (IMAGES - 1) * math.exp(-5.0)), rel=1e-5)
    crossed, _ = mmc._contrast(variables, [tokens, -tokens], [-tokens, tokens])
    assert float(crossed) == pytest.approx(float(value), rel=1e-5)  # each view against the other one


def pixels_of(mask):
    return np.asarray(mask).reshape(-1, 4, 4).repeat(4, 1).repeat(4, 2)[..., None]


def test_reconstruction_counts_hidden_patches_alone(mmc, variables, batch, masks, monkeypatch):
    hidden = [np.asarray(view.hidden.mask)[..., None] for view in masks]
    targets = iter([patchify(batch[name], (4, 4)) for name in ("image", "view2")])
    perfect = [jnp.where(mask, target, 99.0) for mask, target in zip(hidden, targets, strict=True)]
    outputs = iter(perfect)
    monkeypatch.setattr(mmc, "_predict", lambda *args: next(outputs))
    terms = jax.jit(lambda: mmc.loss(variables, batch, masks, None, clock())[1]["terms"])()
    assert float(terms["mim"]) == 0.0 < float(terms["distil"])


def test_hidden_pixels_reach_the_student_only_as_what_replaces_them(variables, batch, masks, loss):
    noise = np.random.default_rng(3).normal(size=batch["image"].shape).astype(np.float32)
    other = {**batch, "image": jnp.where(pixels_of(masks.view1.hidden.mask), noise, batch["image"])}
    first, second = loss(variables, batch, masks)[1], loss(variables, other, masks)[1]
    np.testing.assert_array_equal(first["latent"], second["latent"])
    # But the teacher sees the intact view, hidden pixels included.
    assert float(first["terms"]["distil"]) != float(second["terms"]["distil"])
    assert float(first["terms"]["contrast"]) != float(second["terms"]["contrast"])


@pytest.mark.parametrize("replacement", ["zeros", "noise", "other_image"])
def test_pixels_can_be_replaced_instead(replacement, variables, batch, masks):
    objective = make(replacement=replacement)
    plain = jax.tree.map(lambda x: x, variables)
    for collection in ("params", "teacher"):
        del plain[collection]["encoder"]["mask_token"]
    shapes = jax.eval_shape(objective.init, jax.random.key(0), batch)
    assert jax.tree.structure(shapes) == jax.tree.structure(plain)
    seeded = CorruptedViews(*(view.replace(seed=jnp.arange(IMAGES, dtype=jnp.uint32)) for view in masks))
    loss = jax.jit(lambda b, m: objective.loss(plain, b, m, None, clock()))
    value, aux = loss(batch, seeded)
    again = loss(batch, masks)[1]
    assert np.isfinite(value)
    # The seed decides what noise, and which other image; never the mask.
    same = np.array_equal(aux["latent"], again["latent"])
    assert same == (replacement == "zeros")


def test_dropped_tokens_are_decoded_and_the_visible_ones_distilled_to(batch, masks):
    objective = make(drop_tokens=True)
    variables = jax.jit(lambda: objective.init(jax.random.key(0), batch))()
    assert variables["params"].keys() == {"encoder", "decoder", "prototypes", "projector", "predictor"}
    assert "mask_token" not in variables["params"]["encoder"]
    loss = jax.jit(lambda b: objective.loss(variables, b, masks, None, clock()))
    _, aux = loss(batch)
    assert aux["latent"].shape == (IMAGES, 1 + KEEP, 16)
    assert aux["prediction"].shape == (IMAGES, TOKENS, 48)
    moved = batch["image"] + jnp.asarray(pixels_of(masks.view1.hidden.mask), jnp.float32)
    _, other = loss({**batch, "image": moved})
    np.testing.assert_array_equal(aux["latent"], other["latent"])
    for name in ("mim", "distil", "contrast"):
        assert float(aux["terms"][name]) != float(other["terms"][name])


def test_without_its_other_terms_it_is_simmims_objective(variables, batch, masks):
    """On view 1, with equal weights; SimMIM's code has 1e-5 in the denominator."""
    objective = make(distil_weight=0.0, contrast_weight=0.0)
    model = dict(**TINY["model"], position="sincos", relative_bias=False, qkv_bias="all", drop_path=0.0)
    model |= dict(layer_scale=None, pool="class", class_token=True, init_scheme="xavier")
    simmim = mim_jax.create(dict(method="simmim", image_size=16, mask_patch_size=4, model=model))
    same = {**batch, "view2": batch["image"]}
    ours = jax.jit(lambda: objective.loss(variables, same, masks.view1, None, clock()))()
    params = {name: variables["params"][name] for name in ("encoder", "head")}
    value, aux = jax.jit(lambda: simmim.loss({"params": params}, batch, masks.view1.hidden, None, clock()))()
    np.testing.assert_allclose(ours[1]["prediction"], aux["prediction"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours[0], value, rtol=1e-5)


def test_weights_multiply_their_terms(variables, batch, masks):
    weights = dict(mim_weight=0.0, distil_weight=2.0, contrast_weight=0.5)
    objective = make(**weights)

    def loss(params):
        return objective.loss({**variables, "params": params}, batch, masks, None, clock())

    (value, aux), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    expected = sum(weight * aux["terms"][name.removesuffix("_weight")] for name, weight in weights.items())
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    assert is_zero(gradients["head"]) and not is_zero(gradients["prototypes"])


@pytest.mark.parametrize(("step", "expected"), [(0, 0.04), (1, 0.055), (2, 0.07), (8, 0.07)])
def test_the_teachers_temperature_warms_up(step, expected):
    objective = make(teacher_temperature_warmup=0.25)
    assert float(objective._teacher_temperature(clock(step, 8))) == pytest.approx(expected, rel=1e-5)
    assert float(make(teacher_temperature_warmup=0.0)._teacher_temperature(clock(step, 8))) == pytest.approx(0.07)


def test_one_mask_holds_for_both_views(variables, batch, masks, loss):
    one = masks.view1.hidden
    both = CorruptedViews(masks.view1, masks.view1)
    assert float(loss(variables, batch, one)[0]) == pytest.approx(float(loss(variables, batch, both)[0]), rel=1e-6)


def test_views_are_masked_each_by_itself(mmc, batch):
    masks = jax.jit(lambda: mmc.masks({}, batch, jax.random.key(0), clock()))()
    for view in masks:
        assert view.hidden.num_keep == KEEP and len(set(np.asarray(view.seed).tolist())) == IMAGES
    assert not np.array_equal(masks.view1.hidden.mask, masks.view2.hidden.mask)
    assert not np.array_equal(masks.view1.seed, masks.view2.seed)


def test_features_are_the_teachers_of_the_intact_image(mmc, variables, states, batch):
    features = jax.jit(mmc.encode)(variables, batch["image"])
    images = torch.from_numpy(np.array(batch["image"])).permute(0, 3, 1, 2)
    expected = torch_encode(states[1], images)
    np.testing.assert_allclose(features["tokens"], expected[:, 1:], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(features["pooled"], expected[:, 0], rtol=1e-4, atol=1e-4)


def test_pictures_show_view_1(mmc, variables, batch, masks):
    pictures = mmc.reconstruct(variables, batch, masks)
    hidden = np.broadcast_to(pixels_of(masks.view1.hidden.mask), batch["image"].shape)
    assert not np.asarray(pictures["masked"])[hidden].any()
    for name in ("masked", "reconstruction"):
        np.testing.assert_array_equal(np.asarray(pictures[name])[~hidden], np.asarray(batch["image"])[~hidden])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(drop_tokens=True, replacement="noise"), "replacement is 'noise', but drop_tokens replaces nothing"),
        (dict(replacement="mean"), "replacement is 'mean'; choose one of mask_token, zeros, noise, other_image"),
        (dict(distil_target="global"), "distil_target is 'global'; choose one of class, patch"),
        (dict(drop_tokens=True, mask_ratio_spread=0.1), "which drop_tokens cannot drop"),
        (dict(teacher_temperature=(0.04,)), "teacher_temperature is"),
        (dict(contrast_temperature=0.0), "contrast_temperature is 0.0"),
        (dict(ema_momentum=1.5), "ema_momentum is 1.5"),
        (dict(projector=dict(hidden=0)), r"projector\.hidden is 0"),
        (dict(model=dict(TINY["model"], class_token=False, pool="mean")), "MMC contrasts class tokens"),
    ],
)
def test_bad_values_are_refused_before_any_computation(change, match):
    with pytest.raises(ConfigError, match=match):
        make(**change)
