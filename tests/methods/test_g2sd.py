"""G2SD's generic distillation: parity with a PyTorch forward written from g2sd.md, and the sheet's checks."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import mim_jax
from mim_jax import TokenMask
from mim_jax.errors import ConfigError, WeightsError
from mim_jax.interop import WeightsWarning, import_with_report
from mim_jax.training.flops import count_flops
from mim_jax.training.teachers import load_teachers
from tests.interop import test_official_layouts as official
from tests.methods import mae_peer
from tests.tiny import ROOT, clock

LAYOUT = "pengzhiliang/G2SD"
WIDTH, DECODER_WIDTH = 32, 24  # of the teacher
KEEP, UNTIL = 4, 2
TINY = dict(
    method="g2sd",
    image_size=16,
    model=dict(width=16, depth=2, heads=4, patch_size=4),
    decoder=dict(width=8, depth=1, heads=2),
    teacher=dict(
        name="mae_vit_b16",
        weights="random",
        width=WIDTH,
        depth=3,
        heads=4,
        patch_size=4,
        decoder=dict(width=DECODER_WIDTH, depth=3, heads=2, until=UNTIL),
    ),
)
KEY = jax.random.key(0)


def student_state():
    heads = {
        **official.linear_shapes("encoderfeature_pred.fc1", WIDTH, 16),
        **official.linear_shapes("encoderfeature_pred.fc2", WIDTH, WIDTH),
        **official.linear_shapes("decoderfeature_pred.fc1", DECODER_WIDTH, 8),
        **official.linear_shapes("decoderfeature_pred.fc2", DECODER_WIDTH, DECODER_WIDTH),
    }
    return mae_peer.mae_state(16, 2, 8, 1) | official.random_state(heads, seed=5)


def mlp(state, name, x):
    return official.linear(state, f"{name}.fc2", F.gelu(official.linear(state, f"{name}.fc1", x)))


def official_forward(student, teacher, images, order, supervise_all=True):
    """Prediction, target, and the losses of decoder and encoder features, of g2sd.md."""
    ours = mae_peer.encode(student, images, order, KEEP)
    latent = official.norm(student, "norm", ours[-1])
    prediction = mlp(student, "decoderfeature_pred", mae_peer.decode(student, latent, order)[-1])
    theirs = mae_peer.encode(teacher, images, order, KEEP)
    states = mae_peer.decode(teacher, official.norm(teacher, "norm", theirs[-1]), order)[UNTIL - 1]
    target = F.layer_norm(states, (DECODER_WIDTH,), eps=1e-6)
    if not supervise_all:
        hidden = order.argsort(dim=1) >= KEEP
        prediction, target = prediction[:, 1:][hidden], target[:, 1:][hidden]
    encoded = mlp(student, "encoderfeature_pred", latent)
    encoder_target = F.layer_norm(theirs[-1], (WIDTH,), eps=1e-6)
    decoder_loss = F.smooth_l1_loss(prediction, target, beta=2.0)
    return prediction, target, decoder_loss, F.smooth_l1_loss(encoded, encoder_target, beta=2.0)


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def order():
    return torch.rand(3, 16, generator=torch.Generator().manual_seed(2)).argsort(dim=1)


@pytest.fixture(scope="module")
def masks(order):
    return TokenMask.from_order(jax.numpy.asarray(order.int().numpy()), KEEP)


@pytest.fixture(scope="module")
def states():
    return student_state(), mae_peer.mae_state(WIDTH, 3, DECODER_WIDTH, 3, seed=7)


@pytest.fixture(scope="module")
def g2sd():
    return mim_jax.create(TINY)


@pytest.fixture(scope="module")
def variables(g2sd, states):
    return read(g2sd, states)


def read(objective, states):
    return mim_jax.import_weights(objective, {"model": states[0], "teacher": states[1]}, LAYOUT, strict=True)


def run(objective, variables, images, masks):
    return jax.jit(objective.loss)(variables, official.as_batch(images), masks, KEY, clock())


def largest(tree):
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_loss_equals_the_official_one(g2sd, variables, states, images, order, masks):
    loss, aux = run(g2sd, variables, images, masks)
    prediction, target, expected, _ = official_forward(*states, images, order)
    assert (prediction - target).abs().max() > 2.0  # both branches of the smooth L1 loss
    official.assert_equal(aux["prediction"], prediction)
    official.assert_equal(aux["target"], target)
    official.assert_equal(loss, expected)
    assert list(aux["terms"]) == ["decoder_feature"]


def test_hidden_patches_alone(variables, states, images, order, masks):
    objective = mim_jax.create({**TINY, "supervise_all": False})
    loss, aux = run(objective, variables, images, masks)
    _, target, expected, _ = official_forward(*states, images, order, supervise_all=False)
    assert aux["prediction"].shape == (3, 16 - KEEP, DECODER_WIDTH)
    assert target.shape == (3 * (16 - KEEP), DECODER_WIDTH)
    official.assert_equal(loss, expected)


def test_the_encoders_term_which_has_no_weight_unless_it_is_given_one(g2sd, variables, states, images, order, masks):
    assert "encoder_head" not in variables["params"]
    objective = mim_jax.create({**TINY, "encoder_weight": 0.5})
    loss, aux = run(objective, read(objective, states), images, masks)
    _, _, decoder, encoder = official_forward(*states, images, order)
    official.assert_equal(aux["terms"]["encoder_feature"], encoder)
    official.assert_equal(loss, decoder + 0.5 * encoder)


def test_files_round_trip_with_what_is_run(g2sd, variables, states, tmp_path):
    student, teacher = states
    untrained = ("decoder_norm.", "decoder_pred.", "encoderfeature_pred.")
    kept = {name: tensor for name, tensor in student.items() if not name.startswith(untrained)}
    not_run = ("decoder_norm.", "decoder_pred.", f"decoder_blocks.{UNTIL}.")
    run = {name: tensor for name, tensor in teacher.items() if not name.startswith(not_run)}
    official.assert_round_trip(g2sd, variables, LAYOUT, kept | mae_peer.under("teacher.", run), tmp_path)


def test_what_is_not_run_is_not_there(variables):
    decoder = variables["teacher"]["teacher"]["decoder"]
    assert set(decoder) == {"embed", "mask_token", "stack"}
    assert {leaf.shape[0] for leaf in jax.tree.leaves(decoder["stack"])} == {UNTIL}
    assert set(variables["params"]["decoder"]) == {"embed", "mask_token", "stack"}


def test_the_teachers_last_decoder_blocks_cost_nothing(g2sd, variables, masks):
    def cost(until):
        decoder = {**TINY["teacher"]["decoder"], "until": until}
        teacher = mim_jax.create({**TINY, "teacher": {**TINY["teacher"], "decoder": decoder}}).teacher
        params = jax.eval_shape(teacher.init, KEY)
        return count_flops(teacher, params, jax.ShapeDtypeStruct((3, 16, 16, 3), "float32"), masks)

    tokens, width = 3 * 17, DECODER_WIDTH
    block = 2.0 * tokens * (12 * width**2 + 2 * 17 * width)
    assert cost(3) - cost(2) == cost(2) - cost(1) == block


def test_targets_have_mean_0_and_variance_1(g2sd, variables, images, masks):
    target = np.asarray(run(g2sd, variables, images, masks)[1]["target"])
    assert target.shape == (3, 17, DECODER_WIDTH)
    np.testing.assert_allclose(target.mean(axis=-1), 0.0, atol=1e-5)
    np.testing.assert_allclose(target.var(axis=-1), 1.0, atol=1e-4)


def test_no_gradient_reaches_the_teacher_and_nothing_of_it_is_kept(g2sd, variables, images, masks):
    def loss(trained):
        return g2sd.loss({**variables, **trained}, official.as_batch(images), masks, KEY, clock())[0]

    gradients = jax.jit(jax.grad(loss))(variables)
    assert largest(gradients["teacher"]) == 0.0 < largest(gradients["params"])
    _, backward = jax.vjp(jax.jit(loss), {"params": variables["params"]})
    kept = [leaf.shape for leaf in jax.tree.leaves(backward)]
    assert any(4 * 16 in shape for shape in kept)  # the student's MLP
    assert not any(4 * WIDTH in shape or 4 * DECODER_WIDTH in shape for shape in kept)  # the teacher's


def test_there_are_no_pictures(g2sd, variables, images, masks):
    with pytest.raises(ConfigError, match="predicts nothing one can look at"):
        g2sd.reconstruct(variables, official.as_batch(images), masks)


def test_weights_without_a_decoder_are_refused(states, variables, tmp_path):
    """Public MAE files have none; the official code goes on with a random one."""
    teacher = {name: tensor.contiguous() for name, tensor in states[1].items()}
    save_file(teacher, tmp_path / "whole.safetensors")
    encoder = {name: tensor for name, tensor in teacher.items() if not name.startswith(("decoder_", "mask_token"))}
    save_file(encoder, tmp_path / "encoder.safetensors")

    def load(file):
        section = {**TINY["teacher"], "weights": str(tmp_path / file)}
        objective = mim_jax.create({**TINY, "teacher": section})
        shapes = jax.eval_shape(objective.init, KEY, objective.batch_spec())
        fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        return load_teachers(objective, fresh, import_weights=import_with_report)["teacher"]

    jax.tree.map(np.testing.assert_array_equal, load("whole.safetensors"), variables["teacher"])
    with pytest.raises(WeightsError, match=r"The teacher 'teacher' needs more than .*: params/decoder\."):
        load("encoder.safetensors")


@pytest.mark.parametrize("task", ["classification", "linear_probe"])
def test_downstream_takes_the_students_encoder(task, variables, states):
    model = dict(TINY["model"], class_token=True, pool="class", position="sincos")
    objective = mim_jax.create(dict(task=task, image_size=16, num_classes=5, model=model))
    with pytest.warns(WeightsWarning):
        taken = mim_jax.import_weights(objective, {"model": states[0], "teacher": states[1]}, LAYOUT)
    encoder = taken["params" if task == "classification" else "teacher"]["encoder"]
    jax.tree.map(np.testing.assert_array_equal, encoder, variables["params"]["encoder"])


@pytest.mark.parametrize(
    ("name", "encoder", "total"),
    [("g2sd_vit_s16_in1k", 21_665_664, 26_452_352), ("g2sd_vit_ti16_in1k", 5_524_416, 7_534_400)],
)
def test_parameter_counts_are_the_sheets(name, encoder, total):
    config = mim_jax.load_config(str(ROOT / "configs" / f"{name}.py"), {"compute.dtype": "float32"})
    objective = mim_jax.create(config)
    params = jax.eval_shape(objective.init, KEY, objective.batch_spec())["params"]
    count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    width, inner = config.model.width, config.decoder.width
    assert count["encoder"] + 197 * width == encoder  # positions are constants here
    pixel_head = 2 * inner + (inner + 1) * 768
    encoder_head = (width + 1) * 768 + 769 * 768  # whose gradient is zero
    assert sum(count.values()) + 197 * (width + inner) + pixel_head + encoder_head == total
    teacher = jax.eval_shape(objective.teacher.objective.init, KEY, objective.batch_spec())
    assert sum(leaf.size for leaf in jax.tree.leaves(teacher)) + 197 * (768 + 512) == 111_907_840
    assert objective.num_keep == 49


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_weight": -0.1}, "encoder_weight"),
        ({"teacher": {"decoder": {"until": 9}}}, "teacher.decoder.until is 9; the teacher's decoder has 8 blocks"),
        ({"teacher": {"patch_size": 8, "image_size": 224}}, "The teacher has 28x28 patches"),
    ],
)
def test_config_mistakes_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        mim_jax.create({"method": "g2sd", **changes})
