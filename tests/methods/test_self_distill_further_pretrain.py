"""Self-distillation: parity with transformers, an AdamW step of PyTorch's, and the sheet's checks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from torch.func import functional_call

import mim_jax
from mim_jax import TokenMask
from mim_jax.errors import ConfigError
from mim_jax.interop import WeightsWarning, import_with_report
from mim_jax.training.duration import RunLength
from mim_jax.training.optimizer import Rates, make_optimizer
from mim_jax.training.schedules import learning_rate_schedule, weight_decay_schedule
from tests.interop.test_official_layouts import assert_equal, sincos
from tests.tiny import ROOT, clock, tiny_config
from tests.training.runs import TinyRun, single_device_mesh

LAYOUT = "seanie12/self-distillation"
SIZES = dict(width=32, depth=2, heads=4, patch_size=4)
TINY = dict(
    method="self_distill_further_pretrain",
    image_size=16,
    model=SIZES,
    decoder=dict(width=16, depth=1, heads=2),
)
KEY = jax.random.key(0)


def randomised(model, seed):
    """Every parameter normal and of order one after its layer; positions are the fixed ones."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        scale = 0.5 if parameter.ndim < 2 else 1.5 / np.sqrt(parameter[0].numel())
        is_norm = "norm" in name and name.endswith("weight")
        parameter.data = scale * torch.randn(parameter.shape, generator=generator) + float(is_norm)
        if "pos" in name:
            parameter.data = sincos(parameter.shape[-1], True)
            parameter.requires_grad = False
    return model.eval()


@pytest.fixture(scope="module")
def student():
    config = transformers.ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=16,
        patch_size=4,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        mask_ratio=0.75,
        norm_pix_loss=True,
    )
    return randomised(transformers.ViTMAEForPreTraining(config), 0)


@pytest.fixture(scope="module")
def teacher(student):
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size")
    config = transformers.ViTConfig(**{name: getattr(student.config, name) for name in names})
    return randomised(transformers.ViTModel(config, add_pooling_layer=False), 7)


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def noise():
    return torch.rand(3, 16, generator=torch.Generator().manual_seed(2))


def official_losses(student, teacher, pixels, noise):
    """Both terms, and the class tokens of the intact image; the student's encoder has the names of `ViTModel`."""
    encoder = {name[4:]: p for name, p in student.named_parameters() if name.startswith("vit.")}
    ours = functional_call(teacher, encoder, (pixels,)).last_hidden_state[:, 0]
    theirs = teacher(pixels).last_hidden_state[:, 0].detach()
    return student(pixels, noise=noise).loss, (ours - theirs).square().sum(dim=1).mean(), ours, theirs


@pytest.fixture(scope="module")
def objective():
    return mim_jax.create(TINY)


@pytest.fixture(scope="module")
def variables(objective, student, teacher):
    source = {"model": student.state_dict(), "teacher": {"args": None, "state_dict": teacher.state_dict()}}
    return mim_jax.import_weights(objective, source, LAYOUT, strict=True)


@pytest.fixture(scope="module")
def batch(pixels):
    return {"image": pixels.permute(0, 2, 3, 1).numpy()}


@pytest.fixture(scope="module")
def masks(noise):
    return TokenMask.from_noise(noise.numpy(), 4)


@pytest.fixture(scope="module")
def jitted_loss(objective):
    return jax.jit(objective.loss)


@pytest.fixture(scope="module")
def gradients(objective, variables, batch, masks):
    """Of each term by itself, with respect to params and teacher."""

    def terms(variables):
        return objective.loss(variables, batch, masks, KEY, clock())[1]["terms"]

    return jax.jit(jax.jacrev(terms))(variables)


def test_both_terms_equal_the_official_ones(jitted_loss, variables, student, teacher, batch, masks, pixels, noise):
    loss, aux = jitted_loss(variables, batch, masks, KEY, clock())
    mae, sd, ours, theirs = official_losses(student, teacher, pixels, noise)
    assert_equal(aux["terms"]["mae"], mae)
    assert_equal(aux["terms"]["sd"], sd)
    assert_equal(aux["class_token"], ours)
    assert_equal(aux["teacher_class_token"], theirs)
    assert_equal(loss, mae + sd)


def test_norms_have_the_epsilon_of_transformers(objective, student, teacher):
    """Which shows only in tokens that are all but constant."""
    epsilons = {module.eps for peer in (student, teacher) for module in peer.modules() if hasattr(module, "eps")}
    ours = {network.norm_epsilon for network in (objective.encoder, objective.decoder, objective.teacher.encoder)}
    assert ours == epsilons == {1e-12}


def test_the_distance_is_summed_over_channels_and_zero_between_equals(jitted_loss, variables, batch, masks):
    _, aux = jitted_loss(variables, batch, masks, KEY, clock())
    squares = np.square(np.asarray(aux["class_token"], np.float64) - aux["teacher_class_token"])
    assert float(aux["terms"]["sd"]) == pytest.approx(squares.sum() / 3, rel=1e-5)
    twins = {**variables, "teacher": {"teacher": variables["params"]["encoder"]}}
    assert float(jitted_loss(twins, batch, masks, KEY, clock())[1]["terms"]["sd"]) < 1e-9


def test_one_adamw_step_equals_pytorchs(objective, variables, student, teacher, batch, masks, pixels, noise, tmp_path):
    config = mim_jax.load_config(str(ROOT / "configs" / "self_distill_further_pretrain_vit_b16_dtd.py"))
    length = RunLength(1_880, config.batch_size)
    rates = Rates(learning_rate_schedule(config, 20_000, length), weight_decay_schedule(config, 20_000))
    optimizer = make_optimizer(config, variables["params"], rates)

    @jax.jit
    def step(params):
        def loss(params):
            return objective.loss({**variables, "params": params}, batch, masks, KEY, clock())[0]

        gradients = jax.grad(loss)(params)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params, step=jnp.int32(0))
        return optax.apply_updates(params, updates)

    stepped = {**variables, "params": step(variables["params"])}
    ours = load_file(mim_jax.export_weights(objective, stepped, tmp_path, LAYOUT))

    saved = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    decayed, exempt = [], []
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            (exempt if parameter.ndim == 1 or name.endswith(".bias") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": exempt, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1.5e-4, betas=(0.9, 0.95))
    schedule = transformers.get_linear_schedule_with_warmup(adamw, 0, 20_000)
    mae, sd, _, _ = official_losses(student, teacher, pixels, noise)
    mae.backward()
    sd.backward()
    adamw.step()
    schedule.step()
    try:
        for name, parameter in student.named_parameters():
            if not parameter.requires_grad or name.endswith("k_proj.bias"):  # whose gradient is rounding alone
                continue
            moved = parameter.detach() - saved[name]
            # The first step of Adam is the gradient's sign; where that is rounding, so is the step.
            clear = (parameter.grad.abs() > 1e-4 * parameter.grad.abs().max()).numpy()
            assert clear.mean() > 0.7, name
            difference = ours[file_name(name)] - saved[name].numpy() - moved.numpy()
            rounding = 3e-7 * saved[name].abs().max().item()
            assert np.abs(difference[clear]).max() < 2e-3 * 1.5e-4 + rounding, name
    finally:
        student.load_state_dict(saved)
        student.zero_grad()
    np.testing.assert_array_equal(
        ours["teacher.embeddings.cls_token"], teacher.state_dict()["embeddings.cls_token"].numpy()
    )
    assert float(rates.learning_rate(jnp.int32(0))) == pytest.approx(1.5e-4)
    assert float(rates.learning_rate(jnp.int32(15_000))) == pytest.approx(1.5e-4 / 4)


def file_name(name):
    """The name in files of what transformers calls otherwise since version 5."""
    name = name.replace("vit.layers.", "vit.encoder.layer.")
    for module, file in {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }.items():
        name = name.replace(module, file)
    return name


def largest(tree):
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_each_term_teaches_what_it_should(objective, variables, batch, masks, gradients):
    assert largest(gradients["sd"]["params"]["decoder"]) == 0.0
    assert largest(gradients["sd"]["params"]["encoder"]) > 0.0
    for term in ("mae", "sd"):
        assert largest(gradients[term]["teacher"]) == 0.0

    def loss(params):
        return objective.loss({**variables, "params": params}, batch, masks, KEY, clock())[0]

    both = jax.jit(jax.grad(loss))(variables["params"])
    scale = largest(both)
    total = jax.tree.map(jnp.add, gradients["mae"]["params"], gradients["sd"]["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale), both, total)


def test_without_distillation_it_is_a_mae_step(variables, batch, masks, gradients):
    mae = mim_jax.create({**TINY, "method": "mae", "model": dict(**SIZES, norm_epsilon=1e-12)})

    def loss(params):
        return mae.loss({"params": params}, batch, masks, KEY, clock())[0]

    expected = jax.jit(jax.grad(loss))(variables["params"])
    scale = largest(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * scale), gradients["mae"]["params"], expected
    )


def test_weights_multiply_the_terms(jitted_loss, variables, batch, masks):
    _, aux = jitted_loss(variables, batch, masks, KEY, clock())
    weighted = mim_jax.create({**TINY, "reconstruction_weight": 2.0, "distillation_weight": 0.25})
    loss, _ = jax.jit(weighted.loss)(variables, batch, masks, KEY, clock())
    assert float(loss) == pytest.approx(2.0 * float(aux["terms"]["mae"]) + 0.25 * float(aux["terms"]["sd"]), rel=1e-6)


def test_each_term_depends_on_what_it_should(jitted_loss, variables, batch, masks):
    terms = jitted_loss(variables, batch, masks, KEY, clock())[1]["terms"]
    other = TokenMask.from_noise(jax.random.uniform(KEY, (3, 16)), 4)
    masked = jitted_loss(variables, batch, other, KEY, clock())[1]["terms"]
    assert masked["sd"] == terms["sd"] and masked["mae"] != terms["mae"]
    changed = {**variables, "teacher": jax.tree.map(lambda x: 1.1 * x, variables["teacher"])}
    taught = jitted_loss(changed, batch, masks, KEY, clock())[1]["terms"]
    assert taught["mae"] == terms["mae"] and taught["sd"] != terms["sd"]


def test_a_training_step_leaves_the_teacher_as_it_is():
    run = TinyRun(tiny_config("self_distill_further_pretrain", {"batch_size": 8}), single_device_mesh())
    before = run.fresh_state()
    after, _ = run.train(2, before)  # the first step's learning rate is 0
    jax.tree.map(np.testing.assert_array_equal, after.variables["teacher"], before.variables["teacher"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.variables["params"], before.variables["params"])
    assert all(jax.tree.leaves(moved))
    assert "position" not in before.variables["params"]["encoder"]


def test_the_public_weights_alone_leave_the_teacher_to_be_loaded(objective, student):
    with pytest.warns(WeightsWarning, match="teacher/teacher is not in the source: left random"):
        variables = mim_jax.import_weights(objective, student.state_dict(), "transformers/vit_mae")
    expected = student.state_dict()["decoder.mask_token"].numpy()[0, 0]
    np.testing.assert_array_equal(variables["params"]["decoder"]["mask_token"], expected)


def test_a_checkpoint_of_the_first_stage_is_a_teacher(objective, teacher, variables):
    state = {f"module.{name}": tensor for name, tensor in teacher.state_dict().items()}
    source, report = import_with_report(objective.teacher.objective, {"args": 0, "state_dict": state}, LAYOUT)
    assert not report.random
    params = objective.teacher.take(source)
    jax.tree.map(np.testing.assert_array_equal, params, variables["teacher"]["teacher"])


def test_downstream_takes_the_student(student, teacher, pixels, batch):
    model = dict(SIZES, norm_epsilon=1e-12, class_token=True, pool="class", position="sincos")
    objective = mim_jax.create(dict(task="linear_probe", image_size=16, num_classes=5, model=model))
    source = {"model": student.state_dict(), "teacher": teacher.state_dict()}
    with pytest.warns(WeightsWarning) as record:
        variables = mim_jax.import_weights(objective, source, LAYOUT)
    assert any("only the student is used here: teacher.embeddings.cls_token" in str(w.message) for w in record)
    encoder = {name[4:]: p for name, p in student.state_dict().items() if name.startswith("vit.")}
    expected = functional_call(teacher, encoder, (pixels,)).last_hidden_state
    assert_equal(jax.jit(objective.encode)(variables, batch["image"])["tokens"], expected[:, 1:])


def test_files_round_trip(objective, variables, student, teacher, tmp_path):
    exported = load_file(mim_jax.export_weights(objective, variables, tmp_path, LAYOUT))
    expected = {file_name(name): tensor for name, tensor in student.state_dict().items()}
    expected |= {
        file_name(f"vit.{name}").replace("vit.", "teacher.", 1): tensor for name, tensor in teacher.state_dict().items()
    }
    assert exported.keys() == expected.keys()
    for name, tensor in expected.items():
        compare = functools.partial(np.testing.assert_allclose, atol=1e-6) if "pos" in name else np.testing.assert_equal
        compare(exported[name], tensor.numpy())


@pytest.mark.parametrize("name", ["self_distill_further_pretrain_vit_b16_dtd", "mae_vit_b16_further_pretrain_dtd"])
def test_the_recipes_are_the_official_scripts(name):
    config = mim_jax.load_config(str(ROOT / "configs" / f"{name}.py:birds"))
    assert config.data.source == "tfds:caltech_birds2011"
    assert config.model.norm_epsilon == 1e-12
    objective = mim_jax.create(config)
    shapes = jax.eval_shape(objective.init, KEY, objective.batch_spec())
    counts = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in shapes["params"].items()}
    assert counts == {"encoder": 85_647_360, "decoder": 26_008_320}
    if config.method == TINY["method"]:
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes["teacher"])) == 85_647_360
    with pytest.raises(ConfigError, match="There is no data set 'cars' in this recipe; choose one of dtd, flowers"):
        mim_jax.load_config(str(ROOT / "configs" / f"{name}.py:cars"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model": dict(SIZES, class_token=False, pool="mean")}, r"model\.class_token is False"),
        ({"distillation_weight": -1.0}, r"distillation_weight is -1\.0"),
        ({"reconstruction_weight": -0.5}, r"reconstruction_weight is -0\.5"),
    ],
)
def test_bad_values_are_refused(change, match):
    with pytest.raises(ConfigError, match=match):
        mim_jax.create({**TINY, **change})
