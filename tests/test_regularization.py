"""LDReg on methods: parity with PyTorch on MAE, and everything else of a method as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import mim_jax
from mim_jax import regularization
from mim_jax.config import objective_class
from mim_jax.contract import Objective
from mim_jax.errors import ConfigError
from mim_jax.training import sharding
from mim_jax.training.optimizer import make_optimizer
from mim_jax.training.schedules import peak_learning_rate
from tests.configs.test_configs import rates_of
from tests.interop import test_official_layouts as official
from tests.tiny import METHODS, ROOT, clock, tiny_config
from tests.training.runs import TinyRun, single_device_mesh

LAYOUT = "HanxunH/LDReg"
KEY = jax.random.key(0)
WEIGHT, ROWS = 0.3, 8
TINY = dict(
    method="mae",
    image_size=16,
    model=dict(width=16, depth=2, heads=4, patch_size=4, norm_epsilon=1e-5),
    decoder=dict(width=8, depth=1, heads=2),
)
BEGUN = mim_jax.Clock.at(10, total_steps=20, steps_per_epoch=1.0)
WARMING = mim_jax.Clock.at(9, total_steps=20, steps_per_epoch=1.0)


def mae(**section):
    return mim_jax.create({**TINY, "regularizer": {"ldreg": section}})


@pytest.fixture(scope="module")
def images():
    return torch.randn(ROWS, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def state():
    return official.mae_state()


@pytest.fixture(scope="module")
def noise():
    return torch.rand(ROWS, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def variables(state):
    more = {"online_cls.0.running_mean": torch.zeros(16), "online_cls.1.weight": torch.zeros(5, 16)}
    wrapped = {f"module.{name}": tensor for name, tensor in (state | more).items()}
    return mim_jax.import_weights(mae(weight=WEIGHT), {"model_state_dict": wrapped, "epoch": 199}, LAYOUT, strict=True)


@pytest.fixture(scope="module")
def value_and_gradients(variables, images, noise):
    """Of an objective at a clock."""
    masks = mim_jax.TokenMask.from_noise(noise.numpy(), 4)

    def compute(objective, clock):
        def loss(params):
            return objective.loss({"params": params}, official.as_batch(images), masks, None, clock)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    return compute


@pytest.mark.parametrize("sign", ["absolute", "signed"])
def test_total_loss_and_gradients_on_mae_are_pytorchs(state, images, noise, value_and_gradients, tmp_path, sign):
    parameters = {name: t.clone().requires_grad_("pos_embed" not in name) for name, t in state.items()}

    def norm(state, name, x):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official, "norm", norm)
        latent, _, reconstruction = official.mae_reference(parameters, images, noise, keep=4)
    features = latent[:, 0]
    distances = torch.cdist(features, features.detach(), compute_mode="donot_use_mm_for_euclid_dist").sort(dim=1)[0]
    mean, last = distances[:, 1:4].mean(dim=1), distances[:, 4]
    log = torch.log(mean / (last - mean))
    term = -(log.abs() if sign == "absolute" else log).mean()
    total = reconstruction + WEIGHT * term
    total.backward()

    (loss, aux), gradients = value_and_gradients(mae(weight=WEIGHT, k=4, sign=sign), BEGUN)
    official.assert_equal(aux["latent"], latent)
    official.assert_equal(aux["terms"]["reconstruction"], reconstruction)
    official.assert_equal(aux["terms"]["ldreg"], term)
    official.assert_equal(aux["metrics"]["lid"], log.exp().mean())
    official.assert_equal(loss, total)
    # The rules that carry weights out carry gradients too.
    exported = load_file(mim_jax.export_weights(mae(weight=WEIGHT), {"params": gradients}, tmp_path, LAYOUT))
    trained = {name: parameter.grad for name, parameter in parameters.items() if parameter.requires_grad}
    assert exported.keys() - trained.keys() == {"pos_embed", "decoder_pos_embed"}
    for name, gradient in trained.items():
        scale = gradient.abs().max().item()
        np.testing.assert_allclose(exported[name], gradient.numpy(), rtol=0, atol=1e-4 * scale, err_msg=name)


def test_a_checkpoint_round_trips(state, variables, tmp_path):
    official.assert_round_trip(mae(weight=WEIGHT), variables, LAYOUT, state, tmp_path)


def test_before_the_end_of_the_warmup_nothing_is_added(value_and_gradients):
    (expected, _), gradients = value_and_gradients(mae(), WARMING)
    (loss, aux), warming = value_and_gradients(mae(weight=WEIGHT, warmup_epochs=10.0), WARMING)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-7), warming, gradients)
    assert float(aux["terms"]["ldreg"]) < -0.1 and float(aux["metrics"]["lid"]) > 1.0
    (loss, aux), begun = value_and_gradients(mae(weight=WEIGHT, warmup_epochs=10.0), BEGUN)
    assert float(loss) == pytest.approx(float(expected) + WEIGHT * float(aux["terms"]["ldreg"]), rel=1e-6)
    difference = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), begun["encoder"], gradients["encoder"])
    assert max(jax.tree.leaves(difference)) > 1e-4


def test_more_neighbors_than_there_are_is_as_many_as_there_are(value_and_gradients):
    (many, _), _ = value_and_gradients(mae(weight=WEIGHT, k=500), BEGUN)
    (six, _), _ = value_and_gradients(mae(weight=WEIGHT, k=ROWS - 2), BEGUN)
    (local, _), _ = value_and_gradients(mae(weight=WEIGHT, k=500, local_batch=6), BEGUN)
    (four, _), _ = value_and_gradients(mae(weight=WEIGHT, k=4), BEGUN)
    assert float(many) == float(six) != float(four) == float(local)


def test_without_a_weight_it_is_the_method_itself():
    assert type(mae()) is objective_class(method="mae")
    with pytest.raises(ConfigError, match="estimator is 'mean'"):  # refused even so
        mae(estimator="mean")


def test_tasks_have_no_regularizers():
    assert "regularizer" not in mim_jax.default_config(task="classification")


def test_all_but_the_loss_is_the_methods():
    plain, objective = mim_jax.create(TINY), mae(weight=WEIGHT)
    assert isinstance(objective, type(plain)) and type(objective).__name__ == "MAE"
    assert type(objective) is type(mae(weight=2.0))
    assert objective.encoder == plain.encoder and objective.num_keep == plain.num_keep
    assert objective.encoder_collection == "params" and objective.teachers is plain.teachers
    assert objective.stage(0.5) is objective
    for name in ("init", "masks", "update", "encode", "reconstruct", "batch_spec"):
        assert getattr(type(objective), name) is getattr(type(plain), name), name


class _Staged(Objective):
    """A method whose second half runs with other sizes, in an object of the plain class."""

    def __init__(self, config, size=1):
        super().__init__(config)
        self.size = size
        self.later = self if size == 2 else _Staged(config, 2)

    def loss(self, variables, batch, masks, rng, clock):
        latent = self.size * batch["image"]
        return latent.sum(), {"terms": {"sum": latent.sum()}, "latent": latent}

    def stage(self, progress):
        return self if progress < 0.5 else self.later


def test_stages_are_regularized_and_stay_the_same_objects():
    config = mim_jax.default_config(method="mae")
    config.regularizer.ldreg.update(weight=WEIGHT, k=4, warmup_epochs=0.0)
    objective = regularization.regularized(_Staged, config.regularizer)(config)
    later = objective.stage(0.7)
    assert objective.stage(0.2) is objective
    assert later is objective.stage(0.9)
    assert type(objective.later) is _Staged  # the method's own is left alone
    batch = {"image": jax.random.normal(KEY, (8, 2, 4))}
    for stage, size in ((objective, 1), (later, 2)):
        loss, aux = stage.loss({}, batch, None, KEY, clock())
        np.testing.assert_allclose(aux["terms"]["sum"], size * batch["image"].sum(), rtol=1e-6)
        assert float(loss) == pytest.approx(float(aux["terms"]["sum"] + WEIGHT * aux["terms"]["ldreg"]), rel=1e-5)


@pytest.fixture(scope="module")
def config():
    return mim_jax.default_config(method="mae")


def test_features_are_the_class_token_or_the_mean_or_what_the_method_says(config):
    latent = jax.random.normal(KEY, (4, 5, 6))
    np.testing.assert_array_equal(regularization.pooled_features({"latent": latent}, config), latent[:, 0])
    config = config.copy_and_resolve_references()
    config.model.class_token = False
    np.testing.assert_allclose(
        regularization.pooled_features({"latent": latent}, config), latent.mean(axis=1), atol=1e-6
    )
    two = regularization.pooled_features({"latent": (latent, latent[:, :2])}, config)
    np.testing.assert_allclose(two[4:], latent[:, :2].mean(axis=1), atol=1e-6)
    pooled = jnp.ones((4, 6))
    assert regularization.pooled_features({"latent": latent, "pooled": pooled}, config) is pooled


@pytest.mark.parametrize("shapes", [{}, {"latent": (4, 5, 5, 6)}, {"latent": (4, 5, 6), "pooled": (4, 5, 6)}])
def test_methods_without_features_are_named(config, shapes):
    with pytest.raises(ConfigError, match=r"regularizer\.ldreg\.weight is 0\.0, but .*'mae' has no features"):
        regularization.pooled_features({name: jnp.ones(shape) for name, shape in shapes.items()}, config)


@pytest.mark.parametrize("rows", [2, 3])
def test_small_batches_are_refused_before_anything_is_compiled(rows):
    objective = mae(weight=WEIGHT)
    batch = objective.batch_spec(rows)
    variables = jax.eval_shape(objective.init, KEY, batch)

    def loss(variables, batch):
        return objective.loss(variables, batch, objective.masks(variables, batch, KEY, clock()), KEY, clock())

    with pytest.raises(ConfigError, match=f"{rows} samples are too few"):
        jax.eval_shape(loss, variables, batch)


@pytest.mark.parametrize("method", METHODS)
def test_any_method_takes_the_term_or_refuses_it_by_name(method):
    objective = mim_jax.create(tiny_config(method, {"regularizer.ldreg.weight": WEIGHT}))
    batch = objective.batch_spec(16)
    variables = jax.eval_shape(objective.init, KEY, batch)

    def loss(variables, batch):
        return objective.loss(variables, batch, objective.masks(variables, batch, KEY, clock()), KEY, clock())

    try:
        value, aux = jax.eval_shape(loss, variables, batch)
    except ConfigError as error:
        assert f"{method!r} has no features for it" in str(error)
        assert method not in ("mae", "simmim", "ijepa", "dmt_jepa")
        return
    assert (value.shape, value.dtype) == ((), jnp.float32)
    assert aux["terms"]["ldreg"].shape == aux["metrics"]["lid"].shape == ()


def test_eight_devices_equal_one():
    def rows(changes, mesh):
        on = {"regularizer.ldreg.weight": 0.1, "regularizer.ldreg.warmup_epochs": 0.0, "model.depth": 1}
        config = tiny_config("mae", {**on, **changes})
        return TinyRun(config, mesh or sharding.make_mesh(config.mesh)).train(3)[1]

    expected = rows({}, single_device_mesh())
    sharded = rows({"mesh.data": 4, "mesh.fsdp": 2}, None)
    for name in ("loss", "terms/ldreg", "metrics/lid", "grad_norm"):
        np.testing.assert_allclose([r[name] for r in sharded], [r[name] for r in expected], rtol=1e-4)
    assert expected[0]["loss"] == pytest.approx(
        expected[0]["terms/reconstruction"] + 0.1 * expected[0]["terms/ldreg"], rel=1e-5
    )


def test_with_accumulation_neighbors_are_those_of_a_micro_batch():
    changes = {
        "regularizer.ldreg.weight": 0.1,
        "regularizer.ldreg.warmup_epochs": 0.0,
        "model.depth": 1,
        "accumulation_steps": 2,
    }
    run = TinyRun(tiny_config("mae", changes), single_device_mesh())
    _, (row,) = run.train(1)
    objective, state, batch = run.objective, run.fresh_state(), run.batch(0)
    mask_rng, _ = jax.random.split(jax.random.fold_in(jax.random.key(run.config.seed), 0))
    masks = objective.masks(state.variables, batch, mask_rng, clock())
    loss, terms = jax.jit(objective.loss), []
    for first in range(2):  # every second example
        part, part_masks = jax.tree.map(lambda x, first=first: x[first::2], (batch, masks))
        terms.append(loss(state.variables, part, part_masks, None, clock())[1]["terms"]["ldreg"])
    assert row["terms/ldreg"] == pytest.approx(float(np.mean(terms)), rel=1e-4)


def test_the_recipe_is_the_official_one():
    config = mim_jax.load_config(str(ROOT / "configs" / "mae_ldreg_vit_b16_in1k.py"))
    assert peak_learning_rate(config) == pytest.approx(1.2e-3)
    objective = mim_jax.create(config)
    params = jax.eval_shape(objective.init, KEY, objective.batch_spec())["params"]
    counts = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    assert counts == {"encoder": 85_647_360, "decoder": 26_008_320}  # MAE's
    # Without a gradient a parameter only decays: every one does.
    ones = jax.tree.map(lambda x: jnp.ones((1,) * x.ndim, x.dtype), params)
    rates, step = rates_of(config), jnp.asarray(30_000, jnp.int32)
    optimizer = make_optimizer(config, ones, rates)
    zeros = jax.tree.map(jnp.zeros_like, ones)
    updates, _ = optimizer.update(zeros, optimizer.init(ones), ones, step=step)
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, -0.05 * float(rates.learning_rate(step)), rtol=1e-5)
