import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import mim_jax
from mim_jax.errors import ConfigError, DataError
from mim_jax.layers import mixing
from mim_jax.models.vit import vit_size
from mim_jax.targets.labels import smoothed_targets

CLOCK = mim_jax.Clock.at(3, total_steps=10, steps_per_epoch=5)
PLAIN = {"mixing": {"probability": 0.0}, "model": {"drop_path": 0.0}}


def _merged(base, changes):
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = _merged(base[key], value) if isinstance(value, dict) and key in base else value
    return merged


def _config(*changes, **more):
    config = {
        "task": "classification",
        "image_size": (8, 12),
        "channels": 2,
        "num_classes": 4,
        "model": {"width": 16, "depth": 2, "heads": 2, "patch_size": 4},
        "compute": {"scan": True},
    }
    return functools.reduce(_merged, (*changes, more), config)


def _batch(size=8, seed=0):
    """Noise with one of the two channels shifted up or down; the label says which and how."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, size).astype(np.int32)
    shift = np.asarray([(1, 0), (-1, 0), (0, 1), (0, -1)], np.float32)[labels]
    images = rng.normal(size=(size, 8, 12, 2)).astype(np.float32) + shift[:, None, None]
    return {"image": jnp.asarray(images), "label": jnp.asarray(labels)}


def _sized_head(variables):
    """Variables whose head is not close to zero, so that logits say something."""
    head = variables["params"]["head"]
    kernel = jax.random.normal(jax.random.key(5), head["kernel"].shape)
    return {**variables, "params": {**variables["params"], "head": {**head, "kernel": kernel}}}


def _init(objective):
    return jax.jit(lambda rng: objective.init(rng, objective.batch_spec()))(jax.random.key(0))


@functools.cache
def _plain():
    """An objective without mixing and drop path, and variables that fit all objectives with mean pooling."""
    objective = mim_jax.create(_config(PLAIN))
    return objective, _sized_head(_init(objective))


@functools.cache
def _compiled(objective, name):
    return jax.jit(getattr(objective, name))


def _loss(objective, variables, batch, seed=1):
    return _compiled(objective, "loss")(variables, batch, None, jax.random.key(seed), CLOCK)


def _predict(objective, variables, images):
    return _compiled(objective, "predict")(variables, images)


def _encode(objective, variables, images):
    return _compiled(objective, "encode")(variables, images)


def _tokens(objective, params, images):
    return np.asarray(jax.jit(objective.encoder.apply)({"params": params["encoder"]}, images))


@pytest.mark.parametrize(
    ("size", "patch_size", "count"), [("B", 16, 86_567_656), ("L", 16, 304_326_632), ("H", 14, 632_045_800)]
)
def test_parameter_counts_of_the_official_models(size, patch_size, count):
    objective = mim_jax.create({"task": "classification", "model": {"patch_size": patch_size, **vit_size(size)}})
    variables = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec(2))
    assert set(variables["params"]) == {"encoder", "norm", "head"}
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == count


def test_loss_is_the_soft_cross_entropy():
    objective, variables = _plain()
    batch = _batch()
    loss, aux = _loss(objective, variables, batch)
    logits = np.asarray(_predict(objective, variables, batch["image"]), np.float64)
    target = np.full((8, 4), 0.1 / 4)
    target[np.arange(8), np.asarray(batch["label"])] += 0.9
    log_softmax = logits - logits.max(1, keepdims=True)
    log_softmax -= np.log(np.exp(log_softmax).sum(1, keepdims=True))
    assert float(loss) == pytest.approx(-(target * log_softmax).sum(1).mean(), rel=1e-5)
    assert loss.dtype == jnp.float32
    assert float(aux["terms"]["cross_entropy"]) == float(loss)
    assert float(aux["metrics"]["accuracy"]) == np.mean(logits.argmax(1) == np.asarray(batch["label"]))
    np.testing.assert_allclose(aux["target"], target, rtol=1e-6)


def test_binary_cross_entropy_asks_about_every_class_by_itself():
    """timm's `BinaryCrossEntropy(smoothing=0, target_threshold=None)` of smoothed and mixed targets."""
    objective = mim_jax.create(_config(model={"drop_path": 0.0}, loss="binary_cross_entropy"))
    loss, aux = _loss(objective, _plain()[1], _batch(), seed=1)
    logits, target = (torch.from_numpy(np.array(aux[name])) for name in ("prediction", "target"))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert set(aux["terms"]) == {"binary_cross_entropy"} and (np.asarray(target) > 0.02).all()


@pytest.mark.parametrize(("init", "kernel", "bias"), [("normal", 0.02, 0.0), ("torch", 0.25 / 3**0.5, 0.25 / 3**0.5)])
def test_other_initialisations_of_the_head(init, kernel, bias):
    """PyTorch's: both uniform up to the root of one over the 16 inputs."""
    head = _init(mim_jax.create(_config(PLAIN, num_classes=1000, head_init=init)))["params"]["head"]
    assert float(head["kernel"].std()) == pytest.approx(kernel, rel=0.03)
    assert float(head["bias"].std()) == pytest.approx(bias, rel=0.06)
    if init == "torch":
        assert max(float(abs(x).max()) for x in head.values()) <= 0.25


def test_mixed_batches_have_mixed_images_and_targets():
    objective = mim_jax.create(_config(model={"drop_path": 0.0}))
    _, variables = _plain()
    batch = _batch()
    loss, aux = _loss(objective, variables, batch, seed=1)
    draw = jax.jit(lambda rng: mixing.draw_mixing(jax.random.split(rng)[0], (8, 12), objective.config.mixing))
    drawn = draw(jax.random.key(1))
    np.testing.assert_allclose(aux["target"], drawn.targets(smoothed_targets(batch["label"], 4, 0.1)), rtol=1e-6)
    assert 0.0 < float(drawn.weight) < 1.0
    logits = _predict(_plain()[0], variables, drawn.images(batch["image"]))
    np.testing.assert_allclose(aux["prediction"], logits, rtol=1e-5, atol=1e-5)
    expected = -(np.asarray(aux["target"]) * np.asarray(jax.nn.log_softmax(logits))).sum(1).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert "metrics" not in aux  # the accuracy on a blend of two images says nothing


def test_mean_pooling_leaves_out_the_class_token_and_precedes_the_norm():
    objective, variables = _plain()
    assert "norm" not in variables["params"]["encoder"]
    scale, bias = jax.random.normal(jax.random.key(2), (2, 16))
    params = {**variables["params"], "norm": {"scale": scale, "bias": bias}}
    variables = {"params": params}
    images = _batch()["image"]
    tokens = _tokens(objective, params, images)[:, 1:]
    features = _encode(objective, variables, images)
    np.testing.assert_allclose(features["tokens"], tokens, rtol=1e-6)
    pooled = tokens.mean(1)
    normalized = (pooled - pooled.mean(1, keepdims=True)) / np.sqrt(pooled.var(1, keepdims=True) + 1e-6)
    pooled = normalized * np.asarray(scale) + np.asarray(bias)
    np.testing.assert_allclose(features["pooled"], pooled, rtol=1e-4, atol=1e-5)
    logits = pooled @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    np.testing.assert_allclose(_predict(objective, variables, images), logits, rtol=1e-4, atol=1e-4)


def test_class_pooling_reads_the_class_token_after_the_final_norm():
    objective = mim_jax.create(_config(PLAIN, model={"pool": "class"}))
    variables = _sized_head(_init(objective))
    params = variables["params"]
    assert set(params) == {"encoder", "head"} and "norm" in params["encoder"]
    images = _batch()["image"]
    token = _tokens(objective, params, images)[:, 0]
    np.testing.assert_allclose(_encode(objective, variables, images)["pooled"], token, rtol=1e-6)
    logits = token @ np.asarray(params["head"]["kernel"])
    np.testing.assert_allclose(_predict(objective, variables, images), logits, rtol=1e-4, atol=1e-5)


def test_initialisation_of_the_head_and_the_position_table():
    objective = mim_jax.create(_config(PLAIN, num_classes=1000))
    params = _init(objective)["params"]
    assert float(params["head"]["kernel"].std()) == pytest.approx(2e-5, rel=0.03)
    assert not params["head"]["bias"].any()
    assert params["encoder"]["position"]["table"].shape == (7, 16)  # trained, class row included


def test_drop_path_acts_in_training_only():
    objective = mim_jax.create(_config(PLAIN, model={"drop_path": 0.9}))
    whole, variables = _plain()  # the same network without drop path
    batch = _batch()
    trained = [np.asarray(_loss(objective, variables, batch, seed)[1]["prediction"]) for seed in range(3)]
    assert not np.array_equal(trained[0], trained[1]) and not np.array_equal(trained[1], trained[2])
    np.testing.assert_allclose(
        _predict(objective, variables, batch["image"]), _predict(whole, variables, batch["image"]), rtol=1e-5
    )


def test_average_of_the_parameters():
    objective = mim_jax.create(_config(ema_decay=0.75))
    variables = _init(objective)
    for averaged, trained in zip(*map(jax.tree.leaves, (variables["teacher"], variables["params"])), strict=True):
        np.testing.assert_array_equal(averaged, trained)
        assert averaged.unsafe_buffer_pointer() != trained.unsafe_buffer_pointer()
    moved = {**variables, "params": jax.tree.map(lambda x: x + 1.0, variables["params"])}
    updated = objective.update(moved, CLOCK)
    jax.tree.map(
        lambda new, old: np.testing.assert_allclose(new, old + 0.25, atol=1e-6),
        updated["teacher"],
        variables["teacher"],
    )
    images = _batch()["image"]
    plain, _ = _plain()
    as_params = {"params": updated["teacher"]}
    np.testing.assert_allclose(
        _predict(objective, updated, images), _predict(plain, as_params, images), rtol=1e-5, atol=1e-6
    )
    pooled = _encode(plain, as_params, images)["pooled"]
    np.testing.assert_allclose(_encode(objective, updated, images)["pooled"], pooled, rtol=1e-5, atol=1e-6)


def test_no_average_by_default():
    objective, variables = _plain()
    assert set(variables) == {"params"}
    assert objective.update(variables, CLOCK) is variables


def test_gradients_reach_every_parameter():
    objective, variables = _plain()
    loss = lambda params: objective.loss({"params": params}, _batch(), None, jax.random.key(0), CLOCK)[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(variables["params"])):
        assert np.abs(np.asarray(leaf)).max() > 0.0, jax.tree_util.keystr(path)


def test_jit_equals_eager():
    objective, variables = _plain()
    eager, _ = objective.loss(variables, _batch(), None, jax.random.key(1), CLOCK)
    assert float(_loss(objective, variables, _batch())[0]) == pytest.approx(float(eager), rel=1e-5)


def test_eight_devices_mix_and_train_as_one():
    objective = mim_jax.create(_config())
    _, variables = _plain()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(_batch(), NamedSharding(mesh, P("data")))
    loss, aux = _loss(objective, jax.device_put(variables, NamedSharding(mesh, P())), sharded, seed=4)
    single, single_aux = _loss(objective, variables, _batch(), seed=4)
    assert float(loss) == pytest.approx(float(single), rel=1e-6)
    np.testing.assert_allclose(aux["target"], single_aux["target"], rtol=1e-6)


def test_bfloat16_is_close_to_float32_and_the_loss_stays_float32():
    objective, variables = _plain()
    half = mim_jax.create(_config(PLAIN, compute={"dtype": "bfloat16", "scan": True}))
    expected, _ = _loss(objective, variables, _batch())
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm mixes bfloat16 and float32
        loss, aux = _loss(half, variables, _batch())
    assert loss.dtype == aux["prediction"].dtype == jnp.float32
    assert float(loss) == pytest.approx(float(expected), rel=2e-2)
    assert float(loss) != float(expected)


@pytest.mark.parametrize("changes", [PLAIN, {}], ids=["plain", "mixed"])
def test_loss_falls_and_the_problem_is_solved(changes):
    objective = mim_jax.create(_config(changes, ema_decay=0.9))
    params = _plain()[1]["params"]
    params = {**params, "head": jax.tree.map(jnp.zeros_like, params["head"])}
    variables = {"params": params, "teacher": params}
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(variables, opt_state, batch, rng):
        loss = lambda params: objective.loss({**variables, "params": params}, batch, None, rng, CLOCK)
        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return objective.update({**variables, "params": params}, CLOCK), opt_state, value

    opt_state = optimizer.init(variables["params"])
    losses = []
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes its integer count with floats
        for i in range(30):
            variables, opt_state, loss = step(variables, opt_state, _batch(32, seed=i), jax.random.key(i))
            losses.append(float(loss))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    held_out = _batch(128, seed=1000)
    predicted = jax.jit(objective.predict)(variables, held_out["image"]).argmax(axis=-1)
    assert float((predicted == held_out["label"]).mean()) > 0.9


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_classes": 1}, "num_classes"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"loss": "bce"}, "loss is 'bce'; choose one of cross_entropy, binary_cross_entropy"),
        ({"head_init": "zeros"}, "head_init is 'zeros'; choose one of mae, normal, torch"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"mixing": {"probability": 2.0}}, "mixing.probability"),
        ({"model": {"pool": "class", "class_token": False}}, "model.pool"),
    ],
)
def test_config_mistakes_are_named(changes, key):
    with pytest.raises(ConfigError, match=key):
        mim_jax.create(_config(changes))


def test_labels_are_required():
    objective, variables = _plain()
    with pytest.raises(DataError, match="label"):
        objective.loss(variables, {"image": _batch()["image"]}, None, jax.random.key(0), CLOCK)
    spec = objective.batch_spec(3)
    assert spec["label"].shape == (3,) and spec["label"].dtype == jnp.int32
    assert spec["image"].shape == (3, 8, 12, 2)
