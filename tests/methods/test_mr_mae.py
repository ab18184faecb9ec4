"""MR-MAE: the mimic loss against PyTorch, the rest against MAE and ConvMAE, and the checks of mr_mae.md."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mim_jax
from mim_jax import TokenMask
from mim_jax.errors import ConfigError
from mim_jax.interop import import_with_report
from mim_jax.training.flops import count_flops
from tests.interop import test_official_layouts as official
from tests.methods.test_maskalign import ask, renormalized, transformers_model
from tests.tiny import ROOT, clock, tiny_config
from tests.training.runs import TinyRun, single_device_mesh

SIZES = dict(width=24, depth=2, heads=3, patch_size=4)
TINY = dict(
    method="mr_mae",
    image_size=16,
    model=dict(width=16, depth=2, heads=4, patch_size=4),
    decoder=dict(width=8, depth=1, heads=2),
    teacher=dict(name="clip_vit_b16", **SIZES),
)
CONV = dict(
    backbone="conv_vit",
    width=16,
    depth=2,
    heads=4,
    patch_size=4,
    class_token=False,
    pool="mean",
    stages=dict(widths=(8, 12), depths=(1, 1), mlp_ratios=(2.0, 2.0)),
)
KEEP = 4
KEY = jax.random.key(0)


def make(**changes):
    return mim_jax.create({**TINY, **changes})


def initial(objective):
    return jax.jit(lambda: objective.init(jax.random.key(1), objective.batch_spec()))()


def losses(objective):
    return jax.jit(lambda v, b, m: objective.loss(v, b, m, None, clock()))


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def batch(images):
    return official.as_batch(images)


@pytest.fixture(scope="module")
def masks():
    return TokenMask.from_noise(jax.random.uniform(jax.random.key(3), (3, 16)), KEEP)


@pytest.fixture(scope="module")
def focused():
    """What is prepared can be changed by hand, so this serves more than one test."""
    return make(focus="top_k", target_norm="none")


@pytest.fixture(scope="module")
def variables(focused):
    return initial(focused)


@pytest.fixture(scope="module")
def loss(focused):
    return losses(focused)


@pytest.fixture(scope="module")
def prepared(focused, variables, batch):
    return jax.jit(focused.prepare)(variables, batch)


@pytest.fixture(scope="module")
def gradients(focused, variables, batch, masks):
    """Of each term by itself, with respect to params and teacher."""
    return jax.jit(jax.jacrev(lambda v: focused.loss(v, batch, masks, None, clock())[1]["terms"]))(variables)


def read_teachers(objective, models):
    frozen = {}
    for name, (model, layout) in models.items():
        teacher = objective.teachers[name]
        frozen[name] = teacher.take(import_with_report(teacher.objective, model.state_dict(), layout)[0])
    return frozen


@pytest.mark.parametrize("backbone", ["vit", "conv_vit"])
def test_the_mimic_loss_of_two_teachers(images, batch, masks, backbone):
    changes = dict(model=CONV) if backbone == "conv_vit" else {}
    objective = make(second_teacher=dict(name="dino_vit_b16", **SIZES), mimic_weight=0.5, **changes)
    clip, dino = transformers_model("CLIPVision"), transformers_model("ViT", layer_norm_eps=1e-6)
    variables = initial(objective)
    models = {"teacher": (clip, "transformers/clip"), "second_teacher": (dino, "transformers/vit")}
    variables = {**variables, "teacher": read_teachers(objective, models)}
    value, aux = losses(objective)(variables, batch, masks)

    ids = torch.from_numpy(np.array(masks.ids_keep)).long()
    latent = torch.from_numpy(np.array(aux["latent"]))[:, int(backbone == "vit") :]
    expected = 0.0
    for name, model, pixels in (("teacher", clip, renormalized(images)), ("second_teacher", dino, images)):
        features = official.gather(ask(model, pixels).hidden_states[-1][:, 1:], ids)
        features = F.layer_norm(features, (24,))
        head = jax.tree.map(lambda x: torch.from_numpy(np.array(x)), variables["params"][f"{name}_head"]["fc1"])
        mimicked = latent @ head["kernel"] + head["bias"]
        official.assert_equal(aux["features"][name], features)
        official.assert_equal(aux["metrics"][f"mimic_{name}"], (mimicked - features).square().mean())
        expected = expected + (mimicked - features).square().mean()
    official.assert_equal(aux["terms"]["mimic"], expected)
    official.assert_equal(value, 0.5 * expected + aux["terms"]["reconstruction"].item())


@pytest.mark.parametrize(("method", "changes"), [("mae", {}), ("convmae", dict(model=CONV))])
def test_without_weight_it_is_the_autoencoder_it_extends(batch, masks, method, changes):
    objective = make(mimic_weight=0.0, **changes)
    variables = initial(objective)
    assert set(variables["params"]) == {"encoder", "decoder"}
    plain = mim_jax.create({k: v for k, v in {**TINY, **changes, "method": method}.items() if k != "teacher"})

    def gradients(one):
        return jax.jit(
            jax.value_and_grad(lambda p: one.loss({**variables, "params": p}, batch, masks, None, clock())[0])
        )(variables["params"])

    ours, theirs = gradients(objective), gradients(plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), ours, theirs)
    drawn = (one.masks(variables, batch, KEY, clock()) for one in (objective, plain))
    jax.tree.map(np.testing.assert_array_equal, *drawn)


def test_the_mimic_loss_reaches_encoder_and_head_alone(gradients):
    mimic, reconstruction = (gradients[name]["params"] for name in ("mimic", "reconstruction"))
    assert not any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(mimic["decoder"]))
    assert not any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(reconstruction["teacher_head"]))
    for term in (mimic, reconstruction):
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(term["encoder"]))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(mimic["teacher_head"]))


def test_the_teacher_gets_no_gradient(gradients):
    for term in gradients.values():
        assert not any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(term["teacher"]))


def with_patches(prepared, patches):
    return {**prepared, "taught": {**prepared["taught"], "patches": {"teacher": patches}}}


def test_only_features_of_visible_patches_count(variables, prepared, masks, loss):
    patches, hidden = np.asarray(prepared["taught"]["patches"]["teacher"]), np.asarray(masks.mask)[:, :, None]
    value, _ = loss(variables, prepared, masks)
    assert loss(variables, with_patches(prepared, np.where(hidden, patches + 1, patches)), masks)[0] == value
    assert loss(variables, with_patches(prepared, np.where(hidden, patches, patches + 1)), masks)[0] != value


def test_a_perfect_mimic_has_no_loss(variables, prepared, masks, loss):
    _, aux = loss(variables, prepared, masks)
    patches = np.array(prepared["taught"]["patches"]["teacher"])
    np.put_along_axis(patches, np.asarray(masks.ids_keep)[:, :, None], np.asarray(aux["mimicked"]["teacher"]), axis=1)
    value, again = loss(variables, with_patches(prepared, patches), masks)
    assert float(again["terms"]["mimic"]) < 1e-10
    np.testing.assert_allclose(value, aux["terms"]["reconstruction"], rtol=1e-6)


def test_the_order_of_visible_patches_does_not_matter(variables, prepared, masks, loss):
    order = np.asarray(masks.order).copy()
    order[:, :KEEP] = order[:, :KEEP][:, ::-1]
    turned = loss(variables, prepared, TokenMask.from_order(jnp.asarray(order), KEEP))[1]["terms"]
    expected = loss(variables, prepared, masks)[1]["terms"]
    for name, value in expected.items():
        np.testing.assert_allclose(turned[name], value, rtol=1e-5)


def test_with_nothing_hidden_only_the_mimic_loss_is_left(batch):
    objective = make()
    variables = initial(objective)
    masks = make(mask_ratio=0.0).masks(variables, batch, KEY, clock())  # as given by hand to one that hides some
    assert not np.asarray(masks.mask).any()

    def loss(params):
        return objective.loss({**variables, "params": params}, batch, masks, None, clock())

    (value, aux), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    assert aux["terms"]["reconstruction"] == 0.0
    assert value == aux["terms"]["mimic"] > 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients["encoder"]["patch_embed"]["projection"]["kernel"]).max() > 0


def test_a_focus_follows_the_teachers_attention(focused, variables, prepared):
    importance = np.asarray(prepared["taught"]["importance"])
    masks = focused.masks(variables, prepared, KEY, clock())
    expected = np.argsort(-importance, axis=1, kind="stable")[:, :KEEP]
    np.testing.assert_array_equal(masks.ids_keep, expected)
    drawn = make(focus="sample").masks(variables, prepared, KEY, clock())
    other = make(focus="sample").masks(variables, prepared, jax.random.key(8), clock())
    assert drawn.num_keep == KEEP
    assert not np.array_equal(drawn.order, other.order)


@pytest.mark.parametrize("focus", ["random", "sample"])
def test_a_step_asks_the_teacher_once(focus):
    run = TinyRun(tiny_config("mr_mae", {"focus": focus}), single_device_mesh())
    state, batch = run.abstract_state, run.objective.batch_spec(16)
    teacher = run.objective.teachers["teacher"]
    alone = count_flops(teacher, state.variables["teacher"]["teacher"], batch["image"])
    off = TinyRun(tiny_config("mr_mae", {"mimic_weight": 0.0}), single_device_mesh())
    more = count_flops(run.step_function(), state, batch) - count_flops(off.step_function(), off.abstract_state, batch)
    # What else there is more of: the head's three products, and with a focus one block's queries and keys.
    assert alone < more < 1.5 * alone


def test_a_step_leaves_the_teacher_alone():
    run = TinyRun(tiny_config("mr_mae"), single_device_mesh())
    before = run.fresh_state()
    after, _ = run.train(2, before)  # the first is of rate 0
    jax.tree.map(np.testing.assert_array_equal, after.variables["teacher"], before.variables["teacher"])
    head = (state.variables["params"]["teacher_head"]["fc1"]["kernel"] for state in (before, after))
    assert not np.array_equal(*head)


def test_nothing_of_the_teacher_is_kept_for_the_backward_pass(batch, masks):
    objective = make(teacher=dict(TINY["teacher"], name="dino_vit_b16"))
    variables = jax.eval_shape(objective.init, KEY, objective.batch_spec())

    def pullback(params, variables, batch):
        return jax.vjp(lambda p: objective.loss({**variables, "params": p}, batch, masks, None, clock())[0], params)[1]

    residuals = jax.eval_shape(pullback, variables["params"], variables, batch)
    shapes = {leaf.shape for leaf in jax.tree.leaves(residuals)}
    assert any(1 + KEEP in shape for shape in shapes)  # of the student
    assert not any(24 in shape and 17 in shape for shape in shapes)  # of the teacher


def test_pictures_are_those_of_an_autoencoder(focused, variables, batch, masks):
    pictures = jax.jit(focused.reconstruct)(variables, batch, masks)
    assert pictures["reconstruction"].shape == (3, 16, 16, 3)


def test_the_papers_configs_have_the_sheets_sizes():
    for name, depth in (("mr_mae_vit_b16_in1k", 12), ("mr_mae_conv_vit_b_in1k", 11)):
        objective = mim_jax.create(mim_jax.load_config(str(ROOT / "configs" / f"{name}.py")))
        params = jax.eval_shape(objective.init, KEY, objective.batch_spec())["params"]
        count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
        assert (objective.encoder.depth, objective.num_keep) == (depth, 49)
        assert count["encoder"] == (85_647_360 if depth == 12 else 88_932_736 - 196 * 768)
        assert count["decoder"] == 26_008_320 and count["teacher_head"] == 768 * 768 + 768


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(focus="best"), "focus is 'best'; choose one of random, top_k, sample"),
        (dict(mimic_weight=-1.0), "mimic_weight is -1.0"),
        (dict(teacher=dict(TINY["teacher"], image_size=8)), "'teacher' has 2x2 patches, the student 4x4"),
        (dict(teacher=dict(TINY["teacher"], depth=1), focus="sample"), "cannot be read"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)
