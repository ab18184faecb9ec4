"""DMAE: parity with a PyTorch forward written from dmae.md, and the sheet's checks."""

import math

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mim_jax
from mim_jax import TokenMask
from mim_jax.errors import ConfigError
from mim_jax.models import teachers
from mim_jax.models.teachers import TeacherFeatures
from mim_jax.training.flops import count_flops
from tests.interop import test_official_layouts as official
from tests.methods import mae_peer
from tests.tiny import ROOT, clock

LAYOUT = "UCSC-VLAA/DMAE"
WIDTH = 32  # of the teacher
KEEP = 4
TINY = dict(
    method="dmae",
    image_size=16,
    model=dict(width=16, depth=2, heads=4, patch_size=4),
    decoder=dict(width=8, depth=1, heads=2),
    teacher=dict(name="mae_vit_b16", weights="random", width=WIDTH, depth=3, heads=4, patch_size=4),
    alignment=dict(student_blocks=(0,), teacher_blocks=(1,)),
)
HEADS = "aligned_feature_projection_heads"
KEY = jax.random.key(0)


def make(**alignment):
    return mim_jax.create({**TINY, "alignment": {**TINY["alignment"], **alignment}})


def head_state(kind, pairs):
    shapes = {}
    for number in range(pairs):
        name = f"{HEADS}.{number}"
        if kind == "linear":
            shapes |= official.linear_shapes(name, WIDTH, 16)
        else:
            shapes |= official.linear_shapes(f"{name}.fc1", WIDTH, 16)
            shapes |= official.linear_shapes(f"{name}.fc2", WIDTH, WIDTH)
    return official.random_state(shapes, seed=5)


def official_terms(student, teacher, images, order, pairs, distance):
    """Pixel and feature loss of dmae.md, steps 1 to 6; `student` has the heads, if there are any."""
    ours = mae_peer.encode(student, images, order, KEEP)
    theirs = mae_peer.encode(teacher, images, order, KEEP)
    decoded = mae_peer.decode(student, official.norm(student, "norm", ours[-1]), order)
    prediction = official.linear(student, "decoder_pred", official.norm(student, "decoder_norm", decoded[-1]))[:, 1:]
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(len(images), 16, -1)
    hidden = (order.argsort(dim=1) >= KEEP).float()
    pixel = ((prediction - patches).square().mean(-1) * hidden).sum() / hidden.sum()
    feature = 0.0
    for number, (s, t) in enumerate(pairs):
        name, x, y = f"{HEADS}.{number}", ours[s], theirs[t]
        if f"{name}.weight" in student:
            x = official.linear(student, name, x)
        elif f"{name}.fc1.weight" in student:
            x = official.linear(student, f"{name}.fc2", F.gelu(official.linear(student, f"{name}.fc1", x)))
        else:
            feature = feature + distance(y, x)
            continue
        feature = feature + distance(F.normalize(y, dim=-1), F.normalize(x, dim=-1))
    return pixel, feature


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def noise():
    return torch.rand(3, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def masks(noise):
    return TokenMask.from_noise(noise.numpy(), KEEP)


@pytest.fixture(scope="module")
def states():
    return mae_peer.mae_state(16, 2, 8, 1) | head_state("linear", 1), mae_peer.mae_state(WIDTH, 3, 8, 1, seed=7)


@pytest.fixture(scope="module")
def dmae():
    return make()


@pytest.fixture(scope="module")
def variables(dmae, states):
    return mim_jax.import_weights(dmae, {"model": states[0], "teacher": states[1]}, LAYOUT, strict=True)


@pytest.fixture(scope="module")
def gradients(dmae, variables, images, masks):
    """Of each term by itself, with respect to params and teacher."""

    def terms(trained):
        return dmae.loss(trained, official.as_batch(images), masks, KEY, clock())[1]["terms"]

    return jax.jit(jax.jacrev(terms))(variables)


def largest(tree):
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_loss_equals_the_official_one(dmae, variables, states, images, noise, masks):
    loss, aux = jax.jit(dmae.loss)(variables, official.as_batch(images), masks, KEY, clock())
    pixel, feature = official_terms(*states, images, noise.argsort(dim=1), [(0, 1)], F.l1_loss)
    official.assert_equal(aux["terms"]["reconstruction"], pixel)
    official.assert_equal(aux["terms"]["feature"], feature)
    official.assert_equal(loss, pixel + feature)


def test_several_pairs_through_mlps_by_squares(states, images, noise, masks):
    """The last blocks among them, where the teacher runs as a whole."""
    objective = make(student_blocks=(0, 1), teacher_blocks=(0, 2), head="mlp", loss="l2", weight=0.5)
    student = mae_peer.mae_state(16, 2, 8, 1) | head_state("mlp", 2)
    source = {"model": student, "teacher": states[1]}
    variables = mim_jax.import_weights(objective, source, LAYOUT, strict=True)
    loss, aux = jax.jit(objective.loss)(variables, official.as_batch(images), masks, KEY, clock())
    pixel, feature = official_terms(student, states[1], images, noise.argsort(dim=1), [(0, 0), (1, 2)], F.mse_loss)
    official.assert_equal(aux["terms"]["feature"], feature)
    official.assert_equal(loss, pixel + 0.5 * feature)


def test_without_a_head_features_are_compared_as_they_are(states, images, noise, masks):
    objective = mim_jax.create(
        {**TINY, "teacher": {**TINY["teacher"], "width": 16}, "alignment": {**TINY["alignment"], "head": "none"}}
    )
    student, teacher = mae_peer.mae_state(16, 2, 8, 1), mae_peer.mae_state(16, 3, 8, 1, seed=7)
    source = {"model": student, "teacher": teacher}
    variables = mim_jax.import_weights(objective, source, LAYOUT, strict=True)
    assert "alignment" not in variables["params"]
    _, aux = jax.jit(objective.loss)(variables, official.as_batch(images), masks, KEY, clock())
    _, feature = official_terms(student, teacher, images, noise.argsort(dim=1), [(0, 1)], F.l1_loss)
    official.assert_equal(aux["terms"]["feature"], feature)


def test_files_round_trip_with_the_blocks_that_are_run(dmae, variables, states, tmp_path):
    student, teacher = states
    run = ("cls_token", "pos_embed", "patch_embed.", "blocks.0.", "blocks.1.")
    kept = {name: tensor for name, tensor in teacher.items() if name.startswith(run)}
    official.assert_round_trip(dmae, variables, LAYOUT, student | mae_peer.under("teacher.", kept), tmp_path)


@pytest.mark.parametrize("task", ["classification", "linear_probe"])
def test_downstream_takes_the_students_encoder(task, variables, states):
    model = dict(TINY["model"], class_token=True, pool="class", position="sincos")
    objective = mim_jax.create(dict(task=task, image_size=16, num_classes=5, model=model))
    with pytest.warns(mim_jax.interop.WeightsWarning):
        taken = mim_jax.import_weights(objective, {"model": states[0], "teacher": states[1]}, LAYOUT)
    encoder = taken["params" if task == "classification" else "teacher"]["encoder"]
    jax.tree.map(np.testing.assert_array_equal, encoder, variables["params"]["encoder"])


def replaced(change):
    """An objective whose teacher's features are changed by a function of them."""
    objective = make()
    teacher = objective.teacher

    def changed(params, images, ids_keep):
        features = teacher(params, images, ids_keep)
        return TeacherFeatures(features.tokens, change(features.layers))

    objective.teacher = changed
    return objective


def feature_term(objective, variables, images, masks):
    aux = jax.jit(objective.loss)(variables, official.as_batch(images), masks, KEY, clock())[1]
    return float(aux["terms"]["feature"])


def test_lengths_of_features_do_not_matter(dmae, variables, images, masks):
    expected = feature_term(dmae, variables, images, masks)
    per_token = 0.1 + 10.0 * np.random.default_rng(0).random((1, 3, 1 + KEEP, 1)).astype(np.float32)
    scaled = feature_term(replaced(lambda layers: layers * per_token), variables, images, masks)
    assert scaled == pytest.approx(expected, rel=1e-5)
    params = variables["params"]
    larger = {**variables, "params": {**params, "alignment": jax.tree.map(lambda x: 7.0 * x, params["alignment"])}}
    assert feature_term(dmae, larger, images, masks) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("factor", [3.0, -3.0])
def test_parallel_features_are_at_distance_zero_and_opposite_ones_below_the_bound(
    dmae, variables, images, masks, factor
):
    params = variables["params"]
    _, layers = dmae.encoder.apply(
        {"params": params["encoder"]},
        official.as_batch(images)["image"],
        ids_keep=masks.ids_keep,
        return_layers=True,
    )
    head = params["alignment"]["head0"]["fc1"]
    projected = layers[0] @ head["kernel"] + head["bias"][None, None]
    target = jax.numpy.stack([projected, factor * projected])
    distance = feature_term(replaced(lambda _: target), variables, images, masks)
    bound = 2.0 / math.sqrt(WIDTH)
    if factor > 0:
        assert distance < 1e-6
    else:
        assert 0.5 * bound < distance <= bound


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 49), (0.95, 9), (0.98, 3)])
def test_visible_patches_are_truncated_as_in_the_official_code(ratio, visible):
    config = mim_jax.load_config(str(ROOT / "configs" / "dmae_vit_b16_in1k.py"), {"mask_ratio": ratio})
    assert mim_jax.create(config).num_keep == visible


def test_without_the_feature_loss_it_is_mae_on_raw_pixels(variables, images, masks):
    mae = mim_jax.create({key: TINY[key] for key in ("image_size", "model", "decoder")} | dict(method="mae"))
    mae = mim_jax.create({**mae.config.to_dict(), "norm_pix_loss": False})
    dmae = make(weight=0.0)

    def value_and_gradients(objective):
        def loss(params):
            return objective.loss({**variables, "params": params}, official.as_batch(images), masks, KEY, clock())[0]

        return jax.jit(jax.value_and_grad(loss))(variables["params"])

    (ours, ours_gradients), (theirs, theirs_gradients) = map(value_and_gradients, (dmae, mae))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
    for part in ("encoder", "decoder"):
        for a, b in zip(*map(jax.tree.leaves, (ours_gradients[part], theirs_gradients[part])), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-3))
    assert largest(ours_gradients["alignment"]) == 0.0


def test_where_each_terms_gradient_goes(gradients):
    feature, reconstruction = gradients["feature"], gradients["reconstruction"]
    assert largest(feature["teacher"]) == largest(reconstruction["teacher"]) == 0.0
    blocks = feature["params"]["encoder"]["stack"]["blocks"]
    assert largest(jax.tree.map(lambda x: x[0], blocks)) > 0.0
    assert largest(jax.tree.map(lambda x: x[1], blocks)) == 0.0  # above the aligned block
    assert largest(feature["params"]["decoder"]) == largest(feature["params"]["encoder"]["norm"]) == 0.0
    assert largest(feature["params"]["alignment"]) > 0.0
    assert largest(reconstruction["params"]["alignment"]) == 0.0
    for layer in range(2):
        assert largest(jax.tree.map(lambda x, i=layer: x[i], reconstruction["params"]["encoder"]["stack"])) > 0.0


def test_a_teacher_run_to_its_end_changes_nothing(dmae, variables, states, images, masks):
    whole = make()
    whole.teacher = teachers.build(whole.config.teacher, whole.config)
    teacher = whole.teacher.take(
        mim_jax.import_weights(whole.teacher.objective, _encoder(states[1]), "facebookresearch/mae")
    )
    more = {**variables, "teacher": {"teacher": teacher}}
    arguments = official.as_batch(images), masks, KEY, clock()
    expected, ours = (jax.jit(objective.loss)(v, *arguments)[0] for objective, v in ((whole, more), (dmae, variables)))
    np.testing.assert_array_equal(ours, expected)


def _encoder(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith(("decoder_", "mask_token"))}


def test_the_teachers_last_blocks_cost_nothing():
    """Of ViT-L's 24 blocks 18 are run: counted from the traced loss."""
    changes = {"compute.scan": True, "compute.dtype": "float32"}
    config = mim_jax.load_config(str(ROOT / "configs" / "dmae_vit_b16_in1k.py"), changes)
    objective = mim_jax.create(config)
    variables, batch = jax.eval_shape(objective.init, KEY, objective.batch_spec()), objective.batch_spec()
    masks = jax.eval_shape(objective.masks, variables, batch, KEY, clock())
    loss = count_flops(lambda v, b, m: objective.loss(v, b, m, None, clock())[0], variables, batch, masks)

    def cost(until):
        teacher = teachers.build(config.teacher, config, until=until)
        params = jax.eval_shape(teacher.init, KEY)
        return count_flops(teacher, params, batch["image"], jax.ShapeDtypeStruct((1, 49), np.int32))

    block = cost(18) - cost(17)
    assert cost(24) - cost(18) == pytest.approx(6 * block)
    mae = mim_jax.create(mim_jax.load_config(str(ROOT / "configs" / "mae_vit_b16_in1k.py"), changes))
    params = {"params": {k: v for k, v in variables["params"].items() if k != "alignment"}}
    alone = count_flops(lambda v, b, m: mae.loss(v, b, m, None, clock())[0], params, batch, masks)
    head = 2.0 * 50 * 768 * 1024
    assert loss == alone + cost(18) + head


def test_the_compiled_loss_has_the_teachers_first_blocks_alone(images, masks):
    """By XLA's own count, in which a block has elementwise work as well."""

    def flops(depth, last):
        changes = dict(teacher={**TINY["teacher"], "depth": depth}, alignment=dict(teacher_blocks=(last,)))
        objective = mim_jax.create({**TINY, **changes, "compute": dict(scan=False)})
        batch = official.as_batch(images)
        variables = jax.eval_shape(objective.init, KEY, batch)
        loss = jax.jit(lambda v, b, m: objective.loss(v, b, m, None, clock())[0])
        return loss.lower(variables, batch, masks).compile().cost_analysis()["flops"]

    tokens = 1 + KEEP
    block = len(images) * (2 * tokens * 12 * WIDTH**2 + 4 * tokens**2 * WIDTH)
    two = flops(4, last=1)
    assert two == flops(2, last=1)
    assert block < flops(4, last=2) - two < 1.3 * block


def test_nothing_of_the_teacher_is_kept_for_the_backward_pass(dmae, variables, images, masks):
    def loss(params):
        return dmae.loss({**variables, "params": params}, official.as_batch(images), masks, KEY, clock())[0]

    _, backward = jax.vjp(jax.jit(loss), variables["params"])
    kept = [leaf.shape for leaf in jax.tree.leaves(backward)]
    assert any(4 * 16 in shape for shape in kept)  # the student's MLP
    assert not any(4 * WIDTH in shape for shape in kept)  # the teacher's


@pytest.mark.parametrize(
    ("name", "encoder", "total", "head"),
    [
        ("dmae_vit_b16_in1k", 85_798_656, 112_695_296 - 787_456, 787_456),
        ("dmae_vit_s16_in1k", 21_665_664, 47_578_240, 295_680),
    ],
)
def test_parameter_counts_are_the_sheets(name, encoder, total, head):
    config = mim_jax.load_config(str(ROOT / "configs" / f"{name}.py"), {"compute.dtype": "float32"})
    objective = mim_jax.create(config)
    params = jax.eval_shape(objective.init, KEY, objective.batch_spec())["params"]
    count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    tables = 197 * config.model.width, 197 * config.decoder.width  # constants here
    assert count["encoder"] + tables[0] == encoder
    assert count["encoder"] + count["decoder"] + sum(tables) == total
    assert count["alignment"] == head
    if name == "dmae_vit_b16_in1k":
        teacher = jax.eval_shape(objective.teacher.objective.init, KEY, objective.batch_spec())
        assert sum(leaf.size for leaf in jax.tree.leaves(teacher)) + 197 * 1024 == 303_301_632
        run = jax.eval_shape(objective.teacher.init, KEY)["stack"]["blocks"]
        assert {leaf.shape[0] for leaf in jax.tree.leaves(run)} == {18}


def test_heads_start_as_pytorchs_linear_layers():
    config = mim_jax.resolve(TINY)
    objective = mim_jax.create({**config.to_dict(), "model": {**config.model.to_dict(), "width": 64}})
    init = jax.jit(lambda rng: objective.init(rng, objective.batch_spec())["params"]["alignment"])
    head = init(KEY)["head0"]["fc1"]
    for leaf in jax.tree.leaves(head):
        assert float(np.abs(leaf).max()) <= 1 / 8
        assert float(np.std(leaf)) == pytest.approx(1 / 8 / math.sqrt(3), rel=0.2)


@pytest.mark.parametrize(("depth", "block"), [(1, 0), (2, 0), (4, 2), (12, 8), (24, 17)])
def test_blocks_at_three_quarters_of_the_depth_are_aligned_unless_others_are_named(depth, block):
    model = dict(TINY["model"], depth=depth)
    config = {**TINY, "model": model, "alignment": dict(student_blocks=None, teacher_blocks=(0,))}
    assert mim_jax.create(config).pairs == ((block, 0),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_blocks": (2,)}, r"alignment.student_blocks is \(2,\); give rising numbers of blocks from 0 to 1"),
        ({"teacher_blocks": (1, 0)}, "alignment.teacher_blocks"),
        ({"student_blocks": (0, 1)}, "as many of one as of the other"),
        ({"loss": "huber"}, "alignment.loss is 'huber'; choose one of l1, l2"),
        ({"head": "conv"}, "alignment.head is 'conv'; choose one of linear, mlp, none"),
        ({"head": "none"}, "the student is 16 wide and the teacher 32; choose 'linear'"),
        ({"weight": -1.0}, "alignment.weight"),
    ],
)
def test_config_mistakes_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_a_teacher_of_another_grid_is_refused():
    with pytest.raises(ConfigError, match="The teacher has 8x8 patches"):
        mim_jax.create({**TINY, "teacher": {**TINY["teacher"], "patch_size": 2, "image_size": 16}})
