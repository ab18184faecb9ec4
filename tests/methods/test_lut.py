import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.interop import WeightsWarning
from mim_jax.masking.disjoint import DisjointMasks
from mim_jax.masking.token_mask import TokenMask
from mim_jax.training.schedules import peak_learning_rate
from tests.interop import test_official_layouts as official
from tests.tiny import ROOT, clock, synthetic_batch

IMAGES, HIDDEN, LAYOUT = 6, 12, "naver-ai/lut"
TINY = dict(
    image_size=16,
    model=dict(width=16, depth=2, heads=4, patch_size=4),
    decoder=dict(width=8, depth=1, heads=2),
)


def make(method="lut", **changes):
    section = dict(projector=dict(hidden=HIDDEN)) if method == "lut" else {}
    return mim_jax.create({**TINY, **section, "method": method, **changes})


@pytest.fixture(scope="module")
def lut():
    return make()


@pytest.fixture(scope="module")
def batch(lut):
    return synthetic_batch(lut, IMAGES)


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(2).random((IMAGES, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def masks(noise):
    return DisjointMasks.from_noise(noise, 4)


def head_shapes(name):
    return {
        f"{name}.0.weight": (HIDDEN, 16),
        f"{name}.1.weight": (HIDDEN,),
        f"{name}.1.bias": (HIDDEN,),
        f"{name}.1.running_mean": (HIDDEN,),
        f"{name}.1.running_var": (HIDDEN,),
        f"{name}.3.weight": (16, HIDDEN),
    }


def network_state(seed):
    """A state_dict with the official names: MAE's, projector ("head") and predictor."""
    mae = official.mae_state()
    heads = official.random_state(head_shapes("head") | head_shapes("predictor"), seed)
    heads |= {name: tensor.abs() + 0.5 for name, tensor in heads.items() if name.endswith("running_var")}
    counters = {f"{name}.1.num_batches_tracked": torch.tensor(7) for name in ("head", "predictor")}
    noise = official.random_state({name: tensor.shape for name, tensor in mae.items()}, seed)
    tables = {name: tensor for name, tensor in mae.items() if name.endswith("pos_embed")}
    return noise | tables | heads | counters


@pytest.fixture(scope="module")
def checkpoint():
    return {"model": network_state(0), "state_dict_ema": network_state(1), "epoch": 3}


@pytest.mark.parametrize("prefix", ["", "ema.", "module.ema.", "ema.module."])
@pytest.mark.parametrize("container", ["state_dict_ema", "model_ema"])
def test_the_ema_network_goes_by_several_names(lut, checkpoint, variables, container, prefix):
    renamed = {prefix + name: tensor for name, tensor in checkpoint["state_dict_ema"].items()}
    same = mim_jax.import_weights(lut, {"model": checkpoint["model"], container: renamed}, LAYOUT, strict=True)
    jax.tree.map(np.testing.assert_array_equal, same, variables)


def test_of_one_mask_both_views_follow(variables, batch, noise, masks, loss):
    one = TokenMask.from_noise(noise, masks.view1.num_keep)
    assert loss(variables, batch, one)[0] == loss(variables, batch, masks)[0]


@pytest.fixture(scope="module")
def variables(lut, checkpoint):
    return mim_jax.import_weights(lut, checkpoint, LAYOUT, strict=True)


@pytest.fixture(scope="module")
def loss(lut):
    return jax.jit(lambda v, b, m: lut.loss(v, b, m, jax.random.key(0), clock()))


def torch_encode(state, images, ids=None):
    x = official.embed(state, images) + state["pos_embed"][:, 1:]
    x = x if ids is None else official.gather(x, ids)
    x = torch.cat([(state["cls_token"] + state["pos_embed"][:, :1]).expand(len(x), -1, -1), x], dim=1)
    return official.norm(state, "norm", official.blocks(state, "blocks", x, 4))


def torch_head(state, name, x, train):
    """The official Sequential; in training the running statistics in `state` are moved."""
    x = F.linear(x, state[f"{name}.0.weight"])
    running = state[f"{name}.1.running_mean"], state[f"{name}.1.running_var"]
    x = F.batch_norm(x, *running, state[f"{name}.1.weight"], state[f"{name}.1.bias"], train, 0.1, 1e-5)
    return F.linear(x.relu(), state[f"{name}.3.weight"])


def torch_lut(student, teacher, view1, view2, noise):
    """Steps 2 to 6 of the sheet: L_mae and L_bc; the student's running statistics are moved."""
    _, _, mae = official.mae_reference(student, view1, noise, 4)
    order = noise.argsort(dim=1)
    queries, targets = [], []
    for view, ids in ((view1, order[:, :4]), (view2, order[:, 4:8])):
        x = torch_encode(student, view, ids)[:, 1:].mean(1)
        queries.append(torch_head(student, "predictor", torch_head(student, "head", x, True), True))
        targets.append(torch_head(teacher, "head", torch_encode(teacher, view)[:, 1:].mean(1), False))
    distances = [2 - 2 * F.cosine_similarity(queries[k], targets[1 - k], dim=-1).mean() for k in (0, 1)]
    return mae, sum(distances) / 2


def test_losses_and_statistics_equal_pytorchs(variables, checkpoint, batch, noise, masks, loss):
    student = {name: tensor.clone() for name, tensor in checkpoint["model"].items()}
    views = (torch.from_numpy(np.array(batch[name])).permute(0, 3, 1, 2) for name in ("image", "view2"))
    mae, bc = torch_lut(student, checkpoint["state_dict_ema"], *views, torch.from_numpy(noise))
    value, aux = loss(variables, batch, masks)
    np.testing.assert_allclose(aux["terms"]["mae"], mae, rtol=1e-5)
    np.testing.assert_allclose(aux["terms"]["bc"], bc, rtol=1e-5)
    np.testing.assert_allclose(value, mae + 0.25 * bc, rtol=1e-5)
    for ours, theirs in (("projector", "head"), ("predictor", "predictor")):
        statistics = aux["state"][f"{ours}_statistics"]
        np.testing.assert_allclose(statistics["mean"], student[f"{theirs}.1.running_mean"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(statistics["variance"], student[f"{theirs}.1.running_var"], rtol=1e-4)


def test_checkpoints_go_out_as_they_came_in(lut, variables, checkpoint, tmp_path):
    unused = ("num_batches_tracked", "decoder_", "mask_token", "predictor.")
    ema = {
        f"state_dict_ema.{name}": tensor
        for name, tensor in checkpoint["state_dict_ema"].items()
        if not any(part in name for part in unused)
    }
    state = {name: tensor for name, tensor in checkpoint["model"].items() if "num_batches" not in name}
    official.assert_round_trip(lut, variables, LAYOUT, state | ema, tmp_path)


def test_other_objectives_take_the_student(checkpoint, variables, batch):
    mae = make("mae")
    with pytest.warns(WeightsWarning) as record:
        theirs = mim_jax.import_weights(mae, checkpoint, LAYOUT)
    assert len(record) == 2  # projector and predictor, and the teacher, are left out
    jax.tree.map(np.testing.assert_array_equal, theirs["params"]["encoder"], variables["params"]["encoder"])
    jax.tree.map(np.testing.assert_array_equal, theirs["params"]["decoder"], variables["params"]["decoder"])


@pytest.mark.parametrize(
    ("size", "total", "heads"),
    [
        (dict(width=384, depth=12, heads=6), 53_709_568, 6_307_840),
        (dict(width=768, depth=12, heads=12), 124_254_976, 12_599_296),
        (dict(width=1024, depth=24, heads=16), 346_032_896, 16_793_600),
    ],
    ids=["S", "B", "L"],
)
def test_parameter_counts_are_the_sheets(size, total, heads):
    config = mim_jax.load_config(str(ROOT / "configs" / "lut_vit_b16_in1k.py"))
    config.model.update(size)
    objective = mim_jax.create(config)
    params = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())["params"]
    count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    assert sum(count.values()) == total
    assert count["projector"] + count["predictor"] == heads


def test_the_rate_follows_the_square_root():
    config = mim_jax.load_config(str(ROOT / "configs" / "lut_vit_b16_in1k.py"))
    assert peak_learning_rate(config) == pytest.approx(2.4e-3)
    config.batch_size = 1024
    assert peak_learning_rate(config) == pytest.approx(1.2e-3)


def gradients_of(objective, variables, batch, masks, pick):
    def term(trained):
        value, aux = objective.loss({**variables, **trained}, batch, masks, jax.random.key(0), clock())
        return pick(value, aux["terms"])

    return jax.jit(jax.grad(term))({name: variables[name] for name in ("params", "teacher")})


def is_zero(tree):
    return not any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree))


def test_without_its_weight_it_is_mae_on_view_1(variables, batch, masks):
    ours = make(bc_weight=0.0)
    mae = make("mae")
    gradients = gradients_of(ours, variables, batch, masks, lambda value, terms: value)
    parts = {name: variables["params"][name] for name in ("encoder", "decoder")}
    objective = lambda p: mae.loss({"params": p}, batch, masks.view1, jax.random.key(0), clock())[0]
    expected, theirs = jax.jit(jax.value_and_grad(objective))(parts)
    value, _ = jax.jit(lambda: ours.loss(variables, batch, masks, jax.random.key(0), clock()))()
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for name in parts:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients["params"][name], theirs[name]
        )
    assert is_zero(gradients["params"]["projector"])


def test_each_term_trains_its_own_parts(lut, variables, batch, masks):
    mae = gradients_of(lut, variables, batch, masks, lambda value, terms: terms["mae"])
    bc = gradients_of(lut, variables, batch, masks, lambda value, terms: terms["bc"])
    assert is_zero((mae["params"]["projector"], mae["params"]["predictor"], mae["teacher"]))
    assert is_zero((bc["params"]["decoder"], bc["teacher"]))
    for part in ("encoder", "projector", "predictor"):
        assert not is_zero(bc["params"][part])


def test_bc_lies_between_0_and_4_and_ignores_scale(variables, batch, masks, loss):
    def bc(change=lambda variables: variables):
        return float(loss(change(variables), batch, masks)[1]["terms"]["bc"])

    def scaled(collection, part, factor):
        def change(variables):
            head = variables[collection][part]
            head = {**head, "fc2": {"kernel": factor * head["fc2"]["kernel"]}}
            return {**variables, collection: {**variables[collection], part: head}}

        return change

    expected = bc()
    assert 0.0 <= expected <= 4.0
    assert bc(scaled("params", "predictor", 7.0)) == pytest.approx(expected, rel=1e-5)
    assert bc(scaled("teacher", "projector", 7.0)) == pytest.approx(expected, rel=1e-5)
    assert bc(scaled("params", "predictor", -1.0)) == pytest.approx(4.0 - expected, rel=1e-5)
    assert bc(scaled("teacher", "projector", 0.0)) == 2.0


def test_swapping_views_and_masks_leaves_bc(variables, batch, masks, loss):
    _, aux = loss(variables, batch, masks)
    swapped = {"image": batch["view2"], "view2": batch["image"]}
    _, theirs = loss(variables, swapped, DisjointMasks(view1=masks.view2, view2=masks.view1))
    assert float(theirs["terms"]["bc"]) == pytest.approx(float(aux["terms"]["bc"]), rel=1e-5)
    assert float(theirs["terms"]["mae"]) != pytest.approx(float(aux["terms"]["mae"]), rel=1e-3)
    # Running statistics tell which view came first.
    means = [a["state"]["projector_statistics"]["mean"] for a in (aux, theirs)]
    assert not np.allclose(*means, rtol=1e-3)


def test_only_view_1_is_reconstructed_and_the_teacher_sees_no_mask(lut, variables, batch, masks, loss):
    _, aux = loss(variables, batch, masks)
    _, other = loss(variables, {**batch, "view2": -batch["view2"]}, masks)
    np.testing.assert_array_equal(aux["prediction"], other["prediction"])
    assert float(aux["terms"]["bc"]) != float(other["terms"]["bc"])
    pixels = np.asarray(masks.view1.mask & masks.view2.mask).reshape(IMAGES, 4, 4).repeat(4, 1).repeat(4, 2)[..., None]
    # Pixels that the student sees in neither view reach L_bc through the teacher.
    brighter = {**batch, "view2": batch["view2"] + jnp.asarray(pixels, jnp.float32)}
    assert float(loss(variables, brighter, masks)[1]["terms"]["bc"]) != float(aux["terms"]["bc"])


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.996), (4, 0.998), (7, 0.99984776)])
def test_the_teacher_follows_parameters_and_statistics(lut, variables, step, momentum):
    updated = jax.jit(lut.update)(variables, clock(step, 8))
    student = {name: variables["params"][name] for name in ("encoder", "projector")}
    student["projector_statistics"] = variables["state"]["projector_statistics"]
    expected = jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, variables["teacher"], student)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), updated["teacher"], expected)
    jax.tree.map(np.testing.assert_array_equal, updated["state"], variables["state"])


def test_the_teacher_starts_as_a_copy(lut, batch):
    variables = jax.jit(lambda: lut.init(jax.random.key(0), batch))()
    for name in ("encoder", "projector"):
        jax.tree.map(np.testing.assert_array_equal, variables["teacher"][name], variables["params"][name])
    assert variables["params"]["projector"]["fc1"]["kernel"].shape == (16, HIDDEN)
    kernels = (variables["params"][name]["fc1"]["kernel"] for name in ("projector", "predictor"))
    assert not np.allclose(*kernels)


@pytest.mark.parametrize(
    ("change", "match"),
    [(dict(mask_ratio=0.25), "two views cannot have disjoint"), (dict(projector=dict(hidden=0)), r"projector\.hidden")],
)
def test_bad_values_are_refused_before_any_computation(change, match):
    with pytest.raises(ConfigError, match=match):
        make(**change)
