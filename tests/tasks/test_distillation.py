"""Specific distillation: parity with a PyTorch forward written from g2sd.md, and the sheet's checks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import mim_jax
from mim_jax.errors import ConfigError, DataError
from mim_jax.layers import mixing
from mim_jax.targets.labels import smoothed_targets
from mim_jax.training.optimizer import layer_scales
from tests.interop import test_official_layouts as official
from tests.methods import mae_peer
from tests.tiny import ROOT, clock

LAYOUT = "pengzhiliang/G2SD"
WIDTH, CLASSES, BATCH = 32, 5, 8  # of the teacher
TINY = dict(
    task="distillation",
    image_size=16,
    num_classes=CLASSES,
    model=dict(width=16, depth=2, heads=4, patch_size=4),
    teacher=dict(name="mae_vit_b16_finetuned", weights="random", width=WIDTH, depth=3, heads=4, patch_size=4),
    mixing=dict(probability=0.0),
)
KEY = jax.random.key(0)


def vit_state(width, depth, seed, *extra):
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 17, width),
        "patch_embed.proj.weight": (width, 3, 4, 4),
        "patch_embed.proj.bias": (width,),
        **official.linear_shapes("head", CLASSES, width),
    }
    for layer in range(depth):
        shapes |= official.block_shapes(f"blocks.{layer}", width)
    return official.random_state(functools.reduce(dict.__or__, extra, shapes), seed)


def embedded(state, images):
    return official.with_class_token(state, official.embed(state, images)) + state["pos_embed"]


def student_logits(state, images):
    """Of the class token and of the distillation token, which comes last and has no position."""
    x = torch.cat([embedded(state, images), state["dist_token"].expand(len(images), -1, -1)], dim=1)
    x = official.norm(state, "norm", official.blocks(state, "blocks", x, 4))
    return official.linear(state, "head", x[:, 0]), official.linear(state, "head_dist", x[:, -1])


def teacher_logits(state, images):
    x = official.blocks(state, "blocks", embedded(state, images), 4)[:, 1:].mean(dim=1)
    return official.linear(state, "head", official.norm(state, "fc_norm", x))


@pytest.fixture(scope="module")
def images():
    return torch.randn(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def states(images):
    head_dist = official.linear_shapes("head_dist", CLASSES, 16)
    student = vit_state(16, 2, 3, official.norm_shapes("norm", 16), {"dist_token": (1, 1, 16)}, head_dist)
    teacher = vit_state(WIDTH, 3, 4, official.norm_shapes("fc_norm", WIDTH))
    teacher["head.bias"] -= teacher_logits(teacher, images).mean(dim=0)  # so that it does not always say the same
    return student, teacher


@pytest.fixture(scope="module")
def batch(images):
    return official.as_batch(images, label=np.arange(BATCH, dtype=np.int32) % CLASSES)


@pytest.fixture(scope="module")
def objective():
    return mim_jax.create(TINY)


@pytest.fixture(scope="module")
def variables(objective, states):
    return read(objective, states)


def read(objective, states):
    return mim_jax.import_weights(objective, {"model": states[0], "teacher": states[1]}, LAYOUT)


def run(objective, variables, batch, seed=1):
    return jax.jit(objective.loss)(variables, batch, None, jax.random.key(seed), clock())


def largest(tree):
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_loss_equals_the_official_one(objective, variables, states, images, batch):
    loss, aux = run(objective, variables, batch)
    head, head_dist = student_logits(states[0], images)
    decisions = teacher_logits(states[1], images)
    assert len(set(decisions.argmax(-1).tolist())) > 1
    target = 0.9 * F.one_hot(torch.tensor(batch["label"]).long(), CLASSES) + 0.1 / CLASSES
    terms = {
        "cross_entropy": F.cross_entropy(head, target),
        "distillation": F.cross_entropy(head_dist, decisions.argmax(-1)),
    }
    official.assert_equal(aux["teacher"], decisions)
    for name, term in terms.items():
        official.assert_equal(aux["terms"][name], term)
    official.assert_equal(loss, 0.5 * (terms["cross_entropy"] + terms["distillation"]))
    official.assert_equal(aux["prediction"], (head + head_dist) / 2)


def test_evaluated_is_the_mean_of_both_heads(objective, variables, states, images, batch):
    logits = jax.jit(objective.predict)(variables, batch["image"])
    official.assert_equal(logits, sum(student_logits(states[0], images)) / 2)


def test_nkd_replaces_both_terms_and_leaves_the_distillation_head_out(states, images, batch):
    """As the official code computes it: minus 1000 at the target, and no renormalisation that this would need."""
    objective = mim_jax.create({**TINY, "nkd": True})
    with pytest.warns(mim_jax.interop.WeightsWarning, match="no distillation head"):
        variables = read(objective, states)
    assert set(variables["params"]) == {"encoder", "head"}
    loss, aux = run(objective, variables, batch)
    student, _ = student_logits(states[0], images)
    teacher = teacher_logits(states[1], images)
    label = torch.tensor(batch["label"]).long()[:, None]
    first = -(teacher.softmax(-1).gather(1, label) * student.log_softmax(-1).gather(1, label)).mean()
    mask = 1000 * torch.zeros_like(student).scatter_(1, label, 1)
    others = (teacher - mask).softmax(-1) * (student - mask).log_softmax(-1)
    official.assert_equal(loss, first - others.sum(-1).mean())
    assert list(aux["terms"]) == ["nkd"]
    official.assert_equal(jax.jit(objective.predict)(variables, batch["image"]), student)
    gradients = jax.jit(jax.grad(lambda p: objective.loss({**variables, "params": p}, batch, None, KEY, clock())[0]))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients(variables["params"])))


def test_files_round_trip(objective, variables, states, tmp_path):
    exported = mim_jax.export_weights(objective, variables, tmp_path, LAYOUT)
    again = mim_jax.import_weights(objective, exported, LAYOUT, strict=True)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    names = set(official.load_file(exported))
    assert names == set(states[0]) | set(mae_peer.under("teacher.", states[1]))


def test_a_file_of_the_first_stage_is_where_it_starts(objective):
    state = mae_peer.mae_state(16, 2, 8, 1)
    with pytest.warns(mim_jax.interop.WeightsWarning) as record:
        variables = mim_jax.import_weights(objective, {"model": state}, LAYOUT, parts=("encoder",))
    assert any("params/encoder/registers is not in the source" in str(warning.message) for warning in record)
    encoder = variables["params"]["encoder"]
    np.testing.assert_array_equal(encoder["norm"]["scale"], state["norm.weight"])
    np.testing.assert_array_equal(encoder["position"]["table"], state["pos_embed"][0])
    assert encoder["registers"].any()


def test_teacher_and_student_see_the_same_mixed_images(variables, batch):
    objective = mim_jax.create({**TINY, "mixing": dict(probability=1.0)})
    loss, aux = run(objective, variables, batch, seed=1)
    draw = jax.jit(lambda rng: mixing.draw_mixing(jax.random.split(rng)[0], (16, 16), objective.config.mixing))
    drawn = draw(jax.random.key(1))
    assert 0.0 < float(drawn.weight) < 1.0
    mixed = drawn.images(batch["image"])
    np.testing.assert_allclose(aux["prediction"], objective.predict(variables, mixed), rtol=1e-4, atol=1e-4)
    teacher = objective.teacher(variables["teacher"]["teacher"], mixed)
    np.testing.assert_allclose(aux["teacher"], teacher, rtol=1e-4, atol=1e-4)
    expected = drawn.targets(smoothed_targets(jnp.asarray(batch["label"]), CLASSES, 0.1))
    np.testing.assert_allclose(aux["target"], expected, rtol=1e-6)
    assert "metrics" not in aux  # the accuracy on a blend of two images says nothing
    assert float(loss) == pytest.approx(sum(float(term) for term in aux["terms"].values()) / 2, rel=1e-6)


def test_a_right_teacher_and_equal_tokens_make_both_terms_equal(variables, batch):
    objective = mim_jax.create({**TINY, "label_smoothing": 0.0})
    objective.teacher = lambda params, images: jax.nn.one_hot(batch["label"], CLASSES)
    params = variables["params"]
    token = params["encoder"]["class_token"] + params["encoder"]["position"]["table"][0]
    tied = {**params, "encoder": {**params["encoder"], "registers": token[None]}, "distillation_head": params["head"]}
    _, aux = run(objective, {**variables, "params": tied}, batch)
    terms = {name: float(term) for name, term in aux["terms"].items()}
    assert terms["cross_entropy"] == pytest.approx(terms["distillation"], rel=1e-5)
    _, aux = run(objective, variables, batch)
    assert float(aux["terms"]["cross_entropy"]) != pytest.approx(float(aux["terms"]["distillation"]), rel=1e-2)


def test_gradients_reach_every_parameter_and_nothing_of_the_teacher(objective, variables, batch):
    def loss(trained):
        return objective.loss({**variables, **trained}, batch, None, KEY, clock())[0]

    gradients = jax.jit(jax.grad(loss))(variables)
    assert largest(gradients["teacher"]) == 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients["params"]):
        assert np.abs(leaf).max() > 0.0, jax.tree_util.keystr(path)
    _, backward = jax.vjp(jax.jit(loss), {"params": variables["params"]})
    kept = {leaf.shape[-1] for leaf in jax.tree.leaves(backward) if leaf.ndim}  # features come last
    assert 4 * 16 in kept  # the student's MLP
    assert 4 * WIDTH not in kept  # the teacher's


def test_eight_devices_are_as_one(variables, batch):
    objective = mim_jax.create({**TINY, "mixing": dict(probability=1.0)})
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = jax.device_put(variables, NamedSharding(mesh, P()))
    loss, _ = run(objective, placed, jax.device_put(batch, NamedSharding(mesh, P("data"))), seed=4)
    assert float(loss) == pytest.approx(float(run(objective, variables, batch, seed=4)[0]), rel=1e-5)


def test_bfloat16_is_close_to_float32_and_the_logits_stay_float32(objective, variables, batch):
    half = mim_jax.create({**TINY, "compute": {"dtype": "bfloat16"}})
    expected, _ = run(objective, variables, batch)
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm mixes bfloat16 and float32
        loss, aux = run(half, variables, batch)
        kept = half.teacher.take({"params": variables["teacher"]["teacher"]})
    assert loss.dtype == aux["prediction"].dtype == aux["teacher"].dtype == jnp.float32
    # A teacher in doubt may decide otherwise in bfloat16, so the term of the true labels is compared.
    assert float(loss) == pytest.approx(float(expected), rel=0.1)
    assert kept["encoder"]["stack"]["blocks"]["mlp"]["fc1"]["kernel"].dtype == jnp.bfloat16
    assert kept["head"]["kernel"].dtype == jnp.float32


def test_without_randomness_nothing_is_mixed(variables, batch):
    objective = mim_jax.create({**TINY, "mixing": dict(probability=1.0), "model": {**TINY["model"], "drop_path": 0.5}})
    _, aux = jax.jit(lambda v: objective.loss(v, batch, None, None, clock()))(variables)
    np.testing.assert_allclose(aux["prediction"], objective.predict(variables, batch["image"]), rtol=1e-5, atol=1e-5)
    assert float(aux["metrics"]["accuracy"]) == np.mean(np.argmax(aux["prediction"], axis=1) == batch["label"])


def test_features_for_evaluation(objective, variables, batch):
    features = jax.eval_shape(objective.encode, variables, batch["image"])
    assert features["tokens"].shape == (BATCH, 16, 16)
    assert features["pooled"].shape == features["distilled"].shape == (BATCH, 16)


def test_initialisation():
    config = mim_jax.resolve(TINY)
    wide = mim_jax.create({**config.to_dict(), "model": {**config.model.to_dict(), "width": 64}, "num_classes": 1000})
    params = jax.jit(lambda rng: wide.init(rng, wide.batch_spec()))(KEY)["params"]
    assert float(params["head"]["kernel"].std()) == pytest.approx(2e-5, rel=0.03)
    assert float(params["distillation_head"]["kernel"].std()) == pytest.approx(0.02, rel=0.03)
    assert not params["head"]["bias"].any() and not params["distillation_head"]["bias"].any()
    assert params["encoder"]["registers"].shape == (1, 64)
    assert float(params["encoder"]["registers"].std()) == pytest.approx(0.02, rel=0.3)
    assert params["encoder"]["position"]["table"].shape == (17, 64)  # class token and patches alone


@pytest.mark.parametrize(("size", "count"), [("S", 22_436_048), ("Ti", 5_910_608)])
def test_parameter_counts_are_the_sheets(size, count):
    model = mim_jax.models.vit.vit_size(size)
    objective = mim_jax.create({"task": "distillation", "model": model})
    shapes = jax.eval_shape(objective.init, KEY, objective.batch_spec())
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["teacher"])) == 86_567_656


def test_the_distillation_token_has_the_whole_learning_rate():
    config = mim_jax.load_config(
        str(ROOT / "configs" / "g2sd_vit_s16_in1k_distillation.py"), {"compute.dtype": "float32"}
    )
    objective = mim_jax.create(config)
    params = jax.eval_shape(objective.init, KEY, objective.batch_spec())["params"]
    scales = layer_scales(params, config.optimizer.layer_decay)
    embeddings = [scales["encoder"][name] for name in ("class_token", "position", "patch_embed")]
    np.testing.assert_allclose(jax.tree.leaves(embeddings), 0.75**13, rtol=1e-4)
    for tree in (scales["encoder"]["registers"], scales["head"], scales["distillation_head"]):
        assert {float(scale) for scale in jax.tree.leaves(tree)} == {1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 1}, "num_classes"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"mixing": {"probability": 2.0}}, "mixing.probability"),
        ({"model": {"pool": "mean"}}, "model.pool='class'"),
        ({"model": {"num_registers": 4}}, "model.num_registers is 4; set it to 0"),
        ({"model": {"position": "rope"}}, "model.position='sincos_learned'"),
        ({"teacher": {"name": "clip"}}, "There is no teacher 'clip'"),
    ],
)
def test_config_mistakes_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        mim_jax.create({"task": "distillation", **changes})


def test_labels_are_required(objective, variables, batch):
    with pytest.raises(DataError, match="label"):
        objective.loss(variables, {"image": batch["image"]}, None, KEY, clock())
    assert objective.batch_spec(3)["label"].shape == (3,)
