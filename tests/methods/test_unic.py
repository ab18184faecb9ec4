"""UNIC: the checks of its sheet, and its loss, gradients and statistics against PyTorch in the official layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.interop import WeightsWarning, import_with_report
from mim_jax.methods.unic import feature_distances
from mim_jax.training.duration import RunLength
from mim_jax.training.schedules import learning_rate_schedule, peak_learning_rate
from mim_jax.training.teachers import check_teachers
from tests.interop import test_official_layouts as official
from tests.tiny import ROOT, clock, synthetic_batch

IMAGES, WIDTH, DEPTH, LAYOUT = 6, 16, 3, "naver/unic"
WIDTHS = {"dbot": 20, "deit3": 24, "dino": 24}  # of the teachers, which have two heads and two blocks
OFFICIAL = {"dbot": "dbotft_vitbase_16", "deit3": "deit3_vitbase_16", "dino": "dino_vitbase_16"}
KINDS = {"class": "cls", "patch": "patch"}
TINY = dict(image_size=16, model=dict(width=WIDTH, depth=DEPTH, heads=4, patch_size=4))


def make(method="unic", teachers=None, **changes):
    sizes = {name: dict(width=width, depth=2, heads=2, patch_size=4) for name, width in WIDTHS.items()}
    sizes |= {"ibot": dict(enabled=False)} | (teachers or {})
    return mim_jax.create({**TINY, "method": method, **({"teachers": sizes} if method == "unic" else {}), **changes})


def student_state():
    """A state_dict with the official names; norm and mask token are never trained."""
    shapes = {
        "encoder.cls_token": (1, 1, WIDTH),
        "encoder.pos_embed": (1, 17, WIDTH),
        "encoder.patch_embed.proj.weight": (WIDTH, 3, 4, 4),
        "encoder.patch_embed.proj.bias": (WIDTH,),
    }
    for layer in range(DEPTH):
        shapes |= official.block_shapes(f"encoder.blocks.0.{layer}", WIDTH)
    for teacher, width in WIDTHS.items():
        for kind in KINDS.values():
            for layer in range(DEPTH):
                name = f"lp.heads.{OFFICIAL[teacher]}.{kind}.{layer}.layers"
                hidden = 4 * WIDTH if layer == DEPTH - 1 else WIDTH
                shapes |= official.linear_shapes(f"{name}.0", hidden, WIDTH)
                shapes |= official.linear_shapes(f"{name}.2", width, hidden)
    constants = {"encoder.norm.weight": torch.ones(WIDTH), "encoder.norm.bias": torch.zeros(WIDTH)}
    return official.random_state(shapes) | constants | {"encoder.mask_token": torch.zeros(1, WIDTH)}


def teacher_state(name):
    width, positions = WIDTHS[name], 16 if name == "deit3" else 17
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, positions, width),
        "patch_embed.proj.weight": (width, 3, 4, 4),
        "patch_embed.proj.bias": (width,),
        **official.norm_shapes("fc_norm" if name == "dbot" else "norm", width),
    }
    for layer in range(2):
        shapes |= official.block_shapes(f"blocks.{layer}", width)
        if name == "deit3":
            shapes |= {f"blocks.{layer}.gamma_1": (width,), f"blocks.{layer}.gamma_2": (width,)}
    return official.random_state(shapes, seed=len(name))


def random_statistics():
    generator = torch.Generator().manual_seed(7)
    shapes = {"cls": (1,), "patch": (1, 1)}

    def moments(lead, width):
        mean = torch.randn(*lead, width, generator=generator)
        return {"mean": mean, "std": 0.5 + torch.rand(*lead, width, generator=generator)}

    return {
        OFFICIAL[name]: {kind: moments(lead, width) for kind, lead in shapes.items()} for name, width in WIDTHS.items()
    }


@pytest.fixture(scope="module")
def unic():
    return make()


@pytest.fixture(scope="module")
def checkpoint():
    return {
        "model": {f"module.{name}": tensor for name, tensor in student_state().items()},
        "teacher_ft_stats": random_statistics(),
        "teachers": {name: teacher_state(name) for name in WIDTHS},
        "epoch": 3,
    }


@pytest.fixture(scope="module")
def variables(unic, checkpoint):
    return mim_jax.import_weights(unic, checkpoint, LAYOUT, strict=True)


@pytest.fixture(scope="module")
def batch(unic):
    return synthetic_batch(unic, IMAGES)


@pytest.fixture(scope="module")
def draws():
    return np.random.default_rng(5).random((IMAGES, 3), np.float32)


@pytest.fixture(scope="module")
def step(unic, batch):
    """`(variables, draws, clock) -> (loss, aux), gradients` with respect to all variables."""

    @jax.jit
    def run(variables, draws, clock):
        loss = lambda v: unic.loss(v, batch, draws, None, clock)
        return jax.value_and_grad(loss, has_aux=True)(variables)

    return lambda variables, draws, at=None: run(variables, draws, clock() if at is None else at)


def torch_layers(state, images):
    x = official.with_class_token(state, official.embed(state, images, "encoder."), "encoder.")
    x, layers = x + state["encoder.pos_embed"], []
    for layer in range(DEPTH):
        prefix = f"encoder.blocks.0.{layer}."
        block = {f"block.0.{n.removeprefix(prefix)}": t for n, t in state.items() if n.startswith(prefix)}
        x = official.blocks(block, "block", x, 4)
        layers.append(x)
    return layers


def torch_ladder(state, name, tokens):
    heads = (f"{name}.{layer}.layers" for layer in range(DEPTH))
    return sum(
        official.linear(state, f"{h}.2", F.gelu(official.linear(state, f"{h}.0", x)))
        for h, x in zip(heads, tokens, strict=True)
    )


def torch_teacher(name, state, images):
    x = official.embed(state, images)
    if name == "deit3":
        x = official.with_class_token(state, x + state["pos_embed"])
    else:
        x = official.with_class_token(state, x) + state["pos_embed"]
    x = official.blocks(state, "blocks", x, 2)
    if name == "dbot":
        return {"cls": official.norm(state, "fc_norm", x[:, 1:].mean(1)), "patch": x[:, 1:]}
    x = official.norm(state, "norm", x)
    return {"cls": x[:, 0], "patch": x[:, 1:]}


def torch_standardize(features, old, momentum):
    """The standardised features by the old statistics, and the new ones."""
    axes = tuple(range(features.ndim - 1))
    mean, std = features.mean(axes, keepdim=True), features.std(axes, keepdim=True, unbiased=True) + 1e-6
    new = {
        "mean": (1 - momentum) * old["mean"] + momentum * mean,
        "std": (1 - momentum) * old["std"] + momentum * std,
    }
    return (features - old["mean"]) / (old["std"] + 1e-6), new


def torch_unic(checkpoint, images, draws, momentum):
    """Steps 1 to 6 of the sheet: the loss, all L[b, t], targets and new statistics."""
    state = {name.removeprefix("module."): tensor for name, tensor in checkpoint["model"].items()}
    layers = torch_layers(state, images)
    tokens = {"cls": [x[:, 0] for x in layers], "patch": [x[:, 1:] for x in layers]}
    losses, targets, statistics = [], {}, {}
    for name in WIDTHS:
        with torch.no_grad():
            features = torch_teacher(name, checkpoint["teachers"][name], images)
        targets[name], statistics[name], kinds = {}, {}, []
        for kind in ("cls", "patch"):
            old = checkpoint["teacher_ft_stats"][OFFICIAL[name]][kind]
            y, statistics[name][kind] = torch_standardize(features[kind], old, momentum)
            s = torch_ladder(state, f"lp.heads.{OFFICIAL[name]}.{kind}", tokens[kind])
            cosine = 1 - F.cosine_similarity(s, y, dim=-1)
            l1 = F.smooth_l1_loss(s, y, reduction="none", beta=1.0).mean(-1)
            loss = 0.5 * cosine + 0.5 * l1
            kinds.append(loss if loss.ndim == 1 else loss.mean(1))
            targets[name][kind] = y
        losses.append((kinds[0] + kinds[1]) / 2)
    losses = torch.stack(losses, dim=1)
    kept = torch.ones_like(losses)
    for image, row in enumerate(losses.detach()):
        for teacher in range(len(row)):
            if teacher != row.argmax() and draws[image, teacher] < 0.5:
                kept[image, teacher] = 0
    return (kept * losses).sum() / kept.sum(), losses, targets, statistics


@pytest.mark.parametrize(("at", "momentum"), [(0, 1.0), (4, 0.5005)])
def test_loss_targets_and_statistics_equal_pytorchs(variables, checkpoint, batch, draws, step, at, momentum):
    images = torch.from_numpy(np.array(batch["image"])).permute(0, 3, 1, 2)
    expected, losses, targets, statistics = torch_unic(checkpoint, images, draws, momentum)
    (loss, aux), _ = step(variables, draws, clock(at))
    official.assert_equal(loss, expected)
    np.testing.assert_allclose(0.5 * aux["terms"]["lcos"] + 0.5 * aux["terms"]["lsl1"], loss, rtol=1e-6)
    for column, name in enumerate(WIDTHS):
        np.testing.assert_allclose(aux["metrics"][f"loss_{name}"], losses[:, column].mean(), rtol=1e-5)
        for ours, theirs in KINDS.items():
            official.assert_equal(aux["target"][name][ours], targets[name][theirs])
            for key, moved in aux["state"]["statistics"][name][ours].items():
                official.assert_equal(moved, statistics[name][theirs][key].reshape(-1))


def test_gradients_equal_pytorchs(unic, variables, checkpoint, batch, draws, step, tmp_path):
    trained = {name: tensor.clone().requires_grad_() for name, tensor in checkpoint["model"].items()}
    images = torch.from_numpy(np.array(batch["image"])).permute(0, 3, 1, 2)
    torch_unic({**checkpoint, "model": trained}, images, draws, 1.0)[0].backward()
    _, gradients = step(variables, draws)
    exported = load_file(mim_jax.export_weights(unic, {**variables, "params": gradients["params"]}, tmp_path, LAYOUT))
    for name, parameter in trained.items():
        name = name.removeprefix("module.")
        if name.startswith("encoder.norm") or name == "encoder.mask_token":
            assert parameter.grad is None  # and no parameter here
            continue
        tolerance = 2e-5 * parameter.grad.abs().max().item()
        np.testing.assert_allclose(exported[name], parameter.grad.numpy(), rtol=0, atol=tolerance, err_msg=name)


def test_no_gradient_reaches_teachers_or_statistics(variables, draws, step):
    _, gradients = step(variables, draws)
    for leaf in jax.tree.leaves((gradients["teacher"], gradients["state"])):
        assert not np.any(leaf)
    assert set(gradients["params"]["encoder"]) == {"class_token", "patch_embed", "position", "stack"}


def pair_losses(aux):
    """L[b, t] from what `aux` says of predictions and targets."""
    pairs = [feature_distances(aux["prediction"][name], aux["target"][name]) for name in WIDTHS]
    return np.stack([0.5 * np.asarray(cosine) + 0.5 * np.asarray(l1) for cosine, l1 in pairs], axis=1)


def test_all_or_only_the_worst_teachers_are_learned_from(variables, step):
    (loss, aux), _ = step(variables, np.full((IMAGES, 3), 0.999, np.float32))
    assert float(loss) == pytest.approx(pair_losses(aux).mean(), rel=1e-5)
    (loss, aux), _ = step(variables, np.zeros((IMAGES, 3), np.float32))
    assert float(loss) == pytest.approx(pair_losses(aux).max(axis=1).mean(), rel=1e-5)
    assert sum(float(aux["metrics"][f"weight_{name}"]) for name in WIDTHS) == pytest.approx(1.0, rel=1e-5)


def test_distances_vanish_only_where_both_are_equal_and_cosines_ignore_scale():
    rng = np.random.default_rng(0)
    y = {"class": rng.normal(size=(3, 8)), "patch": rng.normal(size=(3, 5, 8))}
    y = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), y)
    for distance in feature_distances(y, y):
        np.testing.assert_allclose(distance, 0.0, atol=1e-6)
    moved = {**y, "patch": y["patch"].at[1, 2, 3].add(0.5)}
    for distance in feature_distances(moved, y):
        assert distance[1] > 1e-4 and abs(distance[0]) < 1e-6
    other = jax.tree.map(lambda x: x[::-1] + 0.3, y)
    doubled = jax.tree.map(lambda x: 2.0 * x, other)
    (cosine, l1), (same, different) = feature_distances(other, y), feature_distances(doubled, y)
    np.testing.assert_allclose(same, cosine, rtol=1e-5)
    assert np.abs(np.asarray(different - l1)).min() > 1e-2


def test_frozen_statistics_stay(variables, batch, draws):
    frozen = make(statistics_momentum=0.0, statistics_end_momentum=0.0)
    state = jax.jit(lambda: frozen.loss(variables, batch, draws, None, clock(4))[1]["state"])()
    jax.tree.map(np.testing.assert_array_equal, state, variables["state"])


def test_the_step_keeps_no_activation_of_a_teacher(unic, variables, batch, draws):
    def residuals(trained):
        return jax.vjp(lambda v: unic.loss({**variables, **v}, batch, draws, None, clock())[0], trained)[1]

    kept = jax.eval_shape(residuals, {key: variables[key] for key in ("params", "teacher")})
    features = {leaf.shape[-1] for leaf in jax.tree.leaves(kept) if leaf.ndim}  # they come last
    assert 4 * WIDTH in features  # hidden layers of the student's MLPs
    assert not features & {4 * width for width in WIDTHS.values()}


def official_names(checkpoint):
    """What export writes of the checkpoint, under one name for every tensor."""
    flat = {name.removeprefix("module."): tensor for name, tensor in checkpoint["model"].items()}
    for teacher, kinds in checkpoint["teacher_ft_stats"].items():
        for kind, moments in kinds.items():
            flat |= {f"teacher_ft_stats.{teacher}.{kind}.{key}": tensor for key, tensor in moments.items()}
    for teacher, state in checkpoint["teachers"].items():
        for name, tensor in state.items():
            name = name.replace("fc_norm", "norm").replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
            flat[f"teachers.{OFFICIAL[teacher]}.{name}"] = tensor
    return flat


def test_checkpoints_go_out_as_they_came_in(unic, variables, checkpoint, tmp_path):
    official.assert_round_trip(unic, variables, LAYOUT, official_names(checkpoint), tmp_path)
    again = mim_jax.import_weights(unic, tmp_path / "model.safetensors", LAYOUT, strict=True)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_names_without_chunks_and_of_our_sections_and_wrapped_teachers_are_known(unic, variables, checkpoint):
    ours = {value: key for key, value in OFFICIAL.items()}

    def rename(name):
        for theirs, short in ours.items():
            name = name.replace(theirs, short)
        return name.replace("blocks.0.", "blocks.")

    renamed = {
        "model": {rename(name): tensor for name, tensor in checkpoint["model"].items()},
        "teacher_ft_stats": {ours[name]: moments for name, moments in checkpoint["teacher_ft_stats"].items()},
        "teachers": {OFFICIAL[name]: {"model": state} for name, state in checkpoint["teachers"].items()},
    }
    same = mim_jax.import_weights(unic, renamed, LAYOUT, strict=True)
    jax.tree.map(np.testing.assert_array_equal, same, variables)


def test_a_trained_norm_is_not_ignored(unic, checkpoint):
    model = {**checkpoint["model"], "module.encoder.norm.weight": torch.full((WIDTH,), 2.0)}
    with pytest.raises(mim_jax.errors.WeightsError, match="distillation does not train it"):
        mim_jax.import_weights(unic, {**checkpoint, "model": model}, LAYOUT)


def test_what_belongs_to_other_teachers_is_told(checkpoint, variables):
    fewer = make(teachers=dict(dbot=dict(enabled=False)))
    with pytest.warns(WeightsWarning, match="a teacher that is not in config.teachers"):
        theirs = mim_jax.import_weights(fewer, checkpoint, LAYOUT)
    jax.tree.map(np.testing.assert_array_equal, theirs["params"]["encoder"], variables["params"]["encoder"])
    assert sorted(theirs["teacher"]) == ["deit3", "dino"]


def test_other_objectives_take_the_encoder_with_its_norm(unic, variables, checkpoint, batch):
    mae = make("mae", model=dict(TINY["model"], position="learned"))
    with pytest.warns(WeightsWarning, match="params/decoder is not in the source"):
        theirs = mim_jax.import_weights(mae, checkpoint, LAYOUT)
    expected = jax.jit(mae.encode)(theirs, batch["image"])
    found = jax.jit(unic.encode)(variables, batch["image"])
    for key in ("tokens", "pooled"):
        np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=1e-5)


def test_a_fine_tuned_dbot_is_read_as_its_teacher(unic, variables, checkpoint):
    teacher = unic.teachers["dbot"]
    head = official.linear_shapes("head", 5, WIDTHS["dbot"])
    state = checkpoint["teachers"]["dbot"] | official.random_state(head)
    with pytest.warns(WeightsWarning, match="a classifier has no use"):
        found, report = import_with_report(teacher.objective, {"model": state}, teacher.layout)
    assert not report.random
    jax.tree.map(np.testing.assert_array_equal, teacher.take(found), variables["teacher"]["dbot"])


def test_parameter_counts_are_the_sheets():
    objective = mim_jax.create(mim_jax.load_config(str(ROOT / "configs" / "unic_vit_b16_in1k.py")))
    shapes = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())
    count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in shapes["params"].items()}
    mask_token, norm = 768, 2 * 768  # which the official encoder has and does not train
    assert count == {"encoder": 85_799_424 - mask_token - norm, "ladder": 141_723_648}
    assert sorted(shapes["teacher"]) == ["dbot", "deit3", "dino", "ibot"]


def test_the_rate_ends_at_its_lowest_whatever_the_batch():
    config = mim_jax.load_config(str(ROOT / "configs" / "unic_vit_b16_in1k.py"))
    assert peak_learning_rate(config) == pytest.approx(6e-4)
    length = RunLength(1_281_167, config.batch_size)
    total = length.steps(config.duration, "duration")
    rate = learning_rate_schedule(config, total, length)
    assert float(rate(jnp.asarray(total, jnp.int32))) == pytest.approx(1e-6, rel=1e-3)


def test_the_student_starts_as_dinov2_does(unic, batch):
    params = jax.jit(lambda: unic.init(jax.random.key(0), batch))()["params"]
    assert 0.0 < np.abs(params["encoder"]["class_token"]).max() < 1e-5
    assert np.std(params["encoder"]["position"]["table"]) == pytest.approx(0.02, rel=0.2)
    patch = params["encoder"]["patch_embed"]["projection"]
    assert np.abs(patch["kernel"]).max() <= 48**-0.5 < 1.1 * np.abs(patch["kernel"]).max()
    assert np.abs(patch["bias"]).max() > 0.02
    assert np.std(params["ladder"]["dino_patch"]["last"]["mlp"]["fc1"]["kernel"]) == pytest.approx(0.02, rel=0.1)
    assert not np.any(params["ladder"]["dino_class"]["blocks"]["mlp"]["fc1"]["bias"])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(teachers={name: dict(enabled=False) for name in WIDTHS}), "There are no teachers"),
        (dict(teachers=dict(dion=dict(weights="x"))), "teachers.dion has no architecture; set teachers.dion.name"),
        (dict(teachers=dict(dion=dict(enabled=False))), "teachers.dion has no architecture"),
        (dict(teachers=dict(dino=dict(image_size=32, patch_size=4))), "'dino' sees 64 patches, the student 16"),
        (dict(model=dict(TINY["model"], class_token=False, pool="mean")), "model.class_token is False"),
        (dict(teacher_drop=1.5), "teacher_drop is 1.5"),
        (dict(ladder=dict(hidden_ratio=0.0)), "ladder.hidden_ratio"),
    ],
)
def test_bad_values_are_refused_before_any_computation(changes, match):
    with pytest.raises(ConfigError, match=match):
        make(**changes)


def test_a_teacher_without_weights_is_refused_by_its_key(unic):
    with pytest.raises(ConfigError, match=r"'dbot' has no weights; set teachers\.dbot\.weights"):
        check_teachers(unic)
