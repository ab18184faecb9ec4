"""MaskAlign: parity with a PyTorch forward written from maskalign.md, and the sheet's checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

import mim_jax
from mim_jax import TokenMask
from mim_jax.errors import ConfigError
from mim_jax.normalization import CLIP, IMAGENET
from mim_jax.training.flops import count_flops
from tests.interop import test_official_layouts as official
from tests.tiny import ROOT, clock, tiny_config
from tests.training.runs import TinyRun, single_device_mesh

LAYOUT = "OpenDriveLab/maskalign"
TEACHER = dict(width=24, depth=2, heads=3, patch_size=4)
TINY = dict(
    method="maskalign",
    image_size=16,
    model=dict(width=16, depth=2, heads=4, patch_size=4),
    teacher=dict(name="clip_vit_b16", **TEACHER),
    level_weights="top1",
)
KEEP = 4  # int(16 * (1 - 0.7))
KEY = jax.random.key(0)


def make(**changes):
    return mim_jax.create({**TINY, **changes})


def transformers_model(kind, **changes):
    """A tiny random teacher, `CLIPVision` or `ViT`."""
    sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96)
    config = getattr(transformers, f"{kind}Config")(**(sizes | dict(patch_size=4, image_size=16) | changes))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}Model")(config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and "weight" in name
            parameter.copy_(0.2 * torch.randn_like(parameter) + float(is_norm))
    return model.eval()


def head_shapes(kind, level):
    name, width, theirs = f"distill_heads.{level}", official.WIDTH, TEACHER["width"]
    if kind == "linear":
        return official.linear_shapes(name, theirs, width)
    if kind == "norm_linear":
        return {**official.norm_shapes(f"{name}.0", width), **official.linear_shapes(f"{name}.1", theirs, width)}
    between = official.norm_shapes(f"{name}.1", width) if kind == "mlp2" else {}
    first, last = (official.linear_shapes(f"{name}.{i}", out, width) for i, out in ((0, width), (2, theirs)))
    return {**first, **between, **last}


def student_state(adapter="linear", fusion="linear"):
    """A random student with the official names."""
    shapes = {"cls_token": (1, 1, official.WIDTH), **official.encoder_shapes()}
    shapes |= head_shapes(adapter, 0) | head_shapes(adapter, 1)
    if fusion != "simple":
        shapes["distill_weights"] = (2, 2)
    return official.random_state(shapes, 5) | {"pos_embed": official.sincos(official.WIDTH, class_row=True)}


def clip_state(model):
    """Under the names of the official checkpoint, which transformers 5 shortens in memory."""
    return {f"clip_model.vision_model.{k.removeprefix('vision_model.')}": v for k, v in model.state_dict().items()}


def one_block(state, layer, x):
    prefix = f"blocks.{layer}."
    own = {f"one.0.{name.removeprefix(prefix)}": x for name, x in state.items() if name.startswith(prefix)}
    return official.blocks(own, "one", x, official.HEADS)


def adapted(state, level, x, kind):
    name = f"distill_heads.{level}"
    if kind == "linear":
        return official.linear(state, name, x)
    if kind == "norm_linear":
        return official.linear(state, f"{name}.1", official.norm(state, f"{name}.0", x))
    x = official.linear(state, f"{name}.0", x)
    x = F.gelu(x) if kind == "mlp" else official.norm(state, f"{name}.1", x)
    return official.linear(state, f"{name}.2", x)


def renormalized(images):
    (mean, std), (clip_mean, clip_std) = (
        [torch.tensor(values).view(1, 3, 1, 1) for values in pair] for pair in (IMAGENET, CLIP)
    )
    return (images * std + mean - clip_mean) / clip_std


def ask(teacher, pixels):
    with torch.no_grad():
        return teacher(pixel_values=pixels, output_hidden_states=True, output_attentions=True)


def reference(state, hidden_states, images, ids, weights, adapter, fusion, norm, kind):
    """Steps 4 to 7: the predictions and targets of all levels, and the loss."""
    x = official.gather(official.embed(state, images) + state["pos_embed"][:, 1:], ids)
    x = official.with_class_token(state, x)
    layers = []
    for layer in range(2):
        x = one_block(state, layer, x)
        layers.append(x)
    layers = torch.stack(layers)
    if fusion != "simple":
        layers = torch.einsum("ab,bcde->acde", state["distill_weights"], layers)
    loss, predictions, targets = 0.0, [], []
    for level, weight in enumerate(weights):
        student = adapted(state, level, layers[level], adapter)
        y = hidden_states[level + 1]
        if norm == "whiten":
            y = F.layer_norm(y, (y.shape[-1],))
        elif norm == "l2":
            y = F.normalize(y, dim=-1)
        elif norm == "bn":
            y = (y - y.mean()) / (y.var() + 1e-6) ** 0.5
        y = torch.cat([y[:, :1], official.gather(y[:, 1:], ids)], dim=1)
        difference = {
            "smooth_l1": lambda a, b: 2 * F.smooth_l1_loss(a, b),
            "l2": F.mse_loss,
            "l1": F.l1_loss,
        }[kind](y, student)
        loss = loss + weight * difference
        predictions.append(student)
        targets.append(y)
    return torch.stack(predictions, dim=1), torch.stack(targets, dim=1), loss


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def ids():
    """A drawn order; the first ones stay."""
    return torch.rand(3, 16, generator=torch.Generator().manual_seed(2)).argsort(dim=1)


@pytest.fixture(scope="module")
def masks(ids):
    return TokenMask.from_order(jnp.asarray(ids.numpy(), jnp.int32), KEEP)


@pytest.fixture(scope="module")
def clip():
    return transformers_model("CLIPVision")


@pytest.fixture(scope="module")
def checkpoint(clip):
    return student_state() | clip_state(clip)


@pytest.fixture(scope="module")
def objective():
    return make()


@pytest.fixture(scope="module")
def variables(objective, checkpoint):
    return mim_jax.import_weights(objective, {"model": checkpoint, "epoch": 199}, LAYOUT, strict=True)


@pytest.fixture(scope="module")
def loss(objective):
    return jax.jit(lambda v, b, m: objective.loss(v, b, m, None, clock()))


@pytest.fixture(scope="module")
def gradients(objective, variables, images, masks):
    """Of the loss with respect to params and teacher."""
    return jax.jit(jax.grad(lambda v: objective.loss(v, official.as_batch(images), masks, None, clock())[0]))(variables)


VARIANTS = {
    "published": ("linear", "linear", "whiten", "smooth_l1", "top1", (0, 1)),
    "sum": ("mlp", "sum", "l2", "l2", "mean", (0.5, 0.5)),
    "simple": ("norm_linear", "simple", "none", "l1", "mid0", (1, 0)),
    "bn": ("mlp2", "linear", "bn", "smooth_l1", "linear_decay", (0, 1)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_equals_the_official_one(clip, images, ids, masks, variant):
    adapter, fusion, norm, kind, name, weights = VARIANTS[variant]
    state = student_state(adapter, fusion)
    objective = make(adapter=adapter, fusion=fusion, target_norm=norm, distance=kind, level_weights=name)
    variables = mim_jax.import_weights(objective, state | clip_state(clip), LAYOUT, strict=True)
    value, aux = jax.jit(objective.loss)(variables, official.as_batch(images), masks, KEY, clock())
    hidden_states = ask(clip, renormalized(images)).hidden_states
    prediction, target, expected = reference(
        state, hidden_states, images, ids[:, :KEEP], weights, adapter, fusion, norm, kind
    )
    used = [level for level, weight in enumerate(weights) if weight]
    official.assert_equal(aux["prediction"], prediction[:, used])
    official.assert_equal(aux["target"], target[:, used])
    official.assert_equal(value, expected)


def test_importance_is_the_class_tokens_attention(objective, variables, clip, images):
    taught = jax.jit(objective.prepare)(variables, official.as_batch(images))["taught"]
    expected = ask(clip, renormalized(images)).attentions[-1][:, :, 0, 1:].mean(dim=1)
    official.assert_equal(taught["importance"], expected)


def test_files_round_trip(objective, variables, checkpoint, tmp_path):
    official.assert_round_trip(objective, variables, LAYOUT, checkpoint, tmp_path)


def test_names_in_memory_are_understood_too(objective, variables, checkpoint):
    short = {name.replace("clip_model.vision_model.", "clip_model."): x for name, x in checkpoint.items()}
    again = mim_jax.import_weights(objective, short, LAYOUT, strict=True)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_a_dino_teacher_sees_the_batch_as_it_is(images, masks):
    dino = transformers_model("ViT", layer_norm_eps=1e-6)
    state = student_state() | {f"dino_model.{name}": x for name, x in dino.state_dict().items()}
    objective = make(teacher=dict(name="dino_vit_b16", **TEACHER), target_norm="none")
    variables = mim_jax.import_weights(objective, state, LAYOUT, strict=True)
    batch = official.as_batch(images)
    taught = jax.jit(objective.prepare)(variables, batch)["taught"]
    found = ask(dino, images)
    official.assert_equal(taught["layers"][:, 0], found.hidden_states[2])
    official.assert_equal(taught["importance"], found.attentions[-1][:, :, 0, 1:].mean(dim=1))


def test_a_file_without_its_teacher_leaves_that_to_the_config(objective, checkpoint):
    stripped = {name: x for name, x in checkpoint.items() if not name.startswith("clip_model.")}
    with pytest.warns(mim_jax.interop.WeightsWarning, match="teacher/teacher is not in the source"):
        mim_jax.import_weights(objective, stripped, LAYOUT)


def test_downstream_takes_the_student_with_its_norm(checkpoint, images):
    model = dict(**TINY["model"], class_token=True, pool="class", position="sincos")
    task = mim_jax.create(dict(task="linear_probe", image_size=16, num_classes=5, model=model))
    with pytest.warns(mim_jax.interop.WeightsWarning):
        variables = mim_jax.import_weights(task, checkpoint, LAYOUT)
    x = official.embed(checkpoint, images) + checkpoint["pos_embed"][:, 1:]
    x = official.blocks(checkpoint, "blocks", official.with_class_token(checkpoint, x), official.HEADS)
    expected = official.norm(checkpoint, "norm", x)[:, 1:]
    batch = official.as_batch(images)
    official.assert_equal(task.encode(variables, batch["image"])["tokens"], expected)


def test_encode_is_the_students_intact_image(objective, variables, checkpoint, images):
    x = official.embed(checkpoint, images) + checkpoint["pos_embed"][:, 1:]
    x = official.blocks(checkpoint, "blocks", official.with_class_token(checkpoint, x), official.HEADS)
    expected = official.norm(checkpoint, "norm", x)
    features = jax.jit(objective.encode)(variables, official.as_batch(images)["image"])
    official.assert_equal(features["tokens"], expected[:, 1:])
    official.assert_equal(features["pooled"], expected[:, 0])


@pytest.mark.parametrize(
    ("name", "teacher", "encoder", "alignment"),
    [
        ("maskalign_vit_b16_in1k", "clip_vit_b16", 85_798_656, 144 + 12 * (768 * 768 + 768)),
        ("maskalign_vit_l16_in1k", "clip_vit_l14", 303_301_632, 25_190_976),
    ],
)
def test_parameter_counts_are_the_sheets(name, teacher, encoder, alignment):
    objective = mim_jax.create(mim_jax.load_config(str(ROOT / "configs" / f"{name}.py")))
    variables = jax.eval_shape(objective.init, KEY, objective.batch_spec())

    def count(*trees):
        return sum(leaf.size for leaf in jax.tree.leaves(trees))

    params, untrained = variables["params"], variables["teacher"]["untrained"]
    table = 197 * objective.encoder.width  # a constant here
    assert count(params["encoder"], untrained["norm"]) + table == encoder
    assert count(params["alignment"], untrained["adapters"]) == alignment
    assert objective.config.teacher.name == teacher
    assert (objective.num_keep, objective.levels[0]) == (58, objective.teacher.encoder.depth - 4)
    assert objective.teacher.encoder.grid == (14, 14)


def test_masks_keep_distinct_patches_in_drawn_order(objective, variables, images):
    batch = official.as_batch(images)
    draw = jax.jit(objective.masks)
    masks = draw(variables, batch, KEY, clock())
    assert masks.ids_keep.shape == (3, KEEP)
    assert all(len(set(row)) == KEEP for row in np.asarray(masks.ids_keep).tolist())
    prepared = jax.jit(objective.prepare)(variables, batch)
    jax.tree.map(np.testing.assert_array_equal, draw(variables, prepared, KEY, clock()), masks)
    # An overwhelming importance is drawn first.
    importance = np.full((3, 16), 1e-6, np.float32)
    importance[:, 7] = 1.0
    forced = draw(variables, {**prepared, "taught": {**prepared["taught"], "importance": importance}}, KEY, clock())
    assert (np.asarray(forced.ids_keep)[:, 0] == 7).all()


def test_the_loss_is_the_same_prepared_or_not(objective, variables, images, masks, loss):
    batch = official.as_batch(images)
    plain, _ = loss(variables, batch, masks)
    prepared, _ = loss(variables, jax.jit(objective.prepare)(variables, batch), masks)
    np.testing.assert_allclose(prepared, plain, rtol=1e-6)


def test_the_order_of_visible_patches_does_not_matter(variables, images, masks, loss):
    order = np.asarray(masks.order).copy()
    order[:, :KEEP] = order[:, :KEEP][:, ::-1]
    turned = TokenMask.from_order(jnp.asarray(order), KEEP)
    batch = official.as_batch(images)
    np.testing.assert_allclose(loss(variables, batch, turned)[0], loss(variables, batch, masks)[0], rtol=1e-5)


def test_the_student_does_not_see_what_is_hidden(objective, variables, images, masks, loss):
    batch = official.as_batch(images)
    prepared = jax.jit(objective.prepare)(variables, batch)
    hidden = np.asarray(masks.mask).reshape(3, 4, 4).repeat(4, axis=1).repeat(4, axis=2)[..., None]
    other = {**prepared, "image": np.where(hidden, 1.0 - batch["image"], batch["image"])}
    np.testing.assert_array_equal(loss(variables, other, masks)[0], loss(variables, prepared, masks)[0])
    visible = {**prepared, "image": np.where(hidden, batch["image"], 1.0 - batch["image"])}
    assert loss(variables, visible, masks)[0] != loss(variables, prepared, masks)[0]


def test_with_nothing_hidden_it_is_distillation_of_all_tokens(images, checkpoint):
    objective = make(mask_ratio=0.0, masking="random")
    variables = mim_jax.import_weights(objective, checkpoint, LAYOUT, strict=True)
    batch = official.as_batch(images)
    assert objective.prepare(variables, batch) is batch
    loss = jax.jit(objective.loss)
    values = []
    for seed in (0, 1):
        masks = objective.masks(variables, batch, jax.random.key(seed), clock())
        assert not np.asarray(masks.mask).any()
        values.append(loss(variables, batch, masks, None, clock())[0])
    np.testing.assert_allclose(*values, rtol=1e-5)


def test_gradients_reach_the_student_and_nothing_of_the_teacher(gradients):
    assert not any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["teacher"]))
    params = gradients["params"]
    rows = np.abs(params["alignment"]["mixing"]).max(axis=1)
    assert rows[0] == 0 and rows[1] > 0
    assert set(params["alignment"]) == {"mixing", "level2"}
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(params["encoder"]))


@pytest.fixture(scope="module")
def trained():
    """The state before and after two updates, of which the first is of rate 0, and what was logged."""
    run = TinyRun(tiny_config("maskalign", {"level_weights": "top1"}), single_device_mesh())
    before = run.fresh_state()
    return before, *run.train(2, before)


def test_a_step_leaves_the_teacher_and_what_is_untrained_alone(trained):
    before, after, _ = trained
    assert set(before.variables["teacher"]["untrained"]["adapters"]) == {"level1"}
    jax.tree.map(np.testing.assert_array_equal, after.variables["teacher"], before.variables["teacher"])
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(after.variables["params"]), jax.tree.leaves(before.variables["params"]), strict=True
        )
    ]
    assert all(moved)


def test_micro_batches_share_what_was_prepared(trained):
    config = tiny_config("maskalign", {"level_weights": "top1", "accumulation_steps": 4})
    _, rows = TinyRun(config, single_device_mesh()).train(2)
    for row, expected in zip(rows, trained[2], strict=True):
        for name in ("loss", "grad_norm"):
            assert row[name] == pytest.approx(expected[name], rel=5e-5)


def test_a_step_asks_the_teacher_once(monkeypatch):
    run = TinyRun(tiny_config("maskalign"), single_device_mesh())
    objective = run.objective
    batch = objective.batch_spec(16)
    teacher = count_flops(objective.prepare, run.abstract_state.variables, batch)
    once = count_flops(run.step_function(), run.abstract_state, batch)
    monkeypatch.setattr(objective, "prepare", lambda variables, batch: batch)
    twice = count_flops(run.step_function(), run.abstract_state, batch)
    assert twice - once == teacher > 0


def test_nothing_of_the_teacher_is_kept_for_the_backward_pass(objective, variables, images, masks):
    def pullback(params, variables, batch):
        return jax.vjp(lambda p: objective.loss({**variables, "params": p}, batch, masks, None, clock())[0], params)[1]

    residuals = jax.eval_shape(pullback, variables["params"], variables, official.as_batch(images))
    shapes = {leaf.shape for leaf in jax.tree.leaves(residuals)}
    assert any(1 + KEEP in shape for shape in shapes)  # of the student
    assert not any(17 in shape for shape in shapes)  # of the teacher, which sees all 16 patches


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(masking="block"), "masking is 'block'; choose one of attention, random"),
        (dict(level_weights="top3"), "level_weights is 'top3'"),
        (dict(model=dict(TINY["model"], depth=3)), "student's 3 blocks with the teacher's 2; choose 'sum'"),
        (dict(teacher=dict(TINY["teacher"], image_size=8)), "2x2 patches .* set teacher.image_size"),
        (dict(teacher=dict(TINY["teacher"], depth=1), fusion="sum"), "cannot be read"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)
