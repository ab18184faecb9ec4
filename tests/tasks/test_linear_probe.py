import functools

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

CLOCK = mim_jax.Clock.at(3, total_steps=10, steps_per_epoch=5)
RNG = jax.random.key(1)


def _config(**model):
    return {
        "task": "linear_probe",
        "image_size": 8,
        "channels": 2,
        "num_classes": 3,
        "model": {"width": 16, "depth": 2, "heads": 2, "patch_size": 4, **model},
        "compute": {"scan": True},
    }


def _batch(size=16, seed=0):
    """Noise; the label says which channel, if any, is shifted."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, size).astype(np.int32)
    shift = np.eye(3, 2, dtype=np.float32)[labels]
    images = rng.normal(size=(size, 8, 8, 2)).astype(np.float32) + shift[:, None, None]
    return {"image": jnp.asarray(images), "label": jnp.asarray(labels)}


@functools.cache
def _created():
    objective = mim_jax.create(_config())
    return objective, jax.jit(lambda: objective.init(jax.random.key(0), objective.batch_spec()))()


@functools.cache
def _compiled(name):
    return jax.jit(getattr(_created()[0], name))


def test_only_the_head_is_trainable():
    objective = mim_jax.create({"task": "linear_probe"})
    variables = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())
    assert set(variables) == {"params", "teacher", "state"}
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 768 * 1000 + 1000
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["teacher"])) == 85_647_360
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["state"])) == 2 * 768


def test_head_initialisation():
    head = mim_jax.create(_config()).head.init(jax.random.key(0), jnp.zeros((1, 4000)))["params"]
    assert float(head["kernel"].std()) == pytest.approx(0.01, rel=0.03)
    assert not head["bias"].any()


def test_loss_and_running_statistics_equal_pytorch():
    _, variables = _created()
    batch = _batch()
    loss, aux = _compiled("loss")(variables, batch, None, RNG, CLOCK)
    features = np.array(_compiled("encode")(variables, batch["image"])["pooled"])
    head = variables["params"]["head"]
    norm = torch.nn.BatchNorm1d(16, affine=False, eps=1e-6)
    linear = torch.nn.Linear(16, 3)
    linear.weight.data = torch.from_numpy(np.array(head["kernel"]).T.copy())
    linear.bias.data = torch.from_numpy(np.array(head["bias"]))
    peer = torch.nn.Sequential(norm, linear)
    logits = peer(torch.from_numpy(features))
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(np.array(batch["label"], np.int64)))
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(aux["prediction"], logits.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(aux["state"]["batch_norm"]["mean"], norm.running_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(aux["state"]["batch_norm"]["variance"], norm.running_var, rtol=1e-5)
    assert jax.tree.structure(aux["state"]) == jax.tree.structure(variables["state"])

    after = {**variables, "state": aux["state"]}
    np.testing.assert_allclose(
        _compiled("predict")(after, batch["image"]),
        peer.eval()(torch.from_numpy(features)).detach(),
        rtol=1e-4,
        atol=1e-5,
    )


def test_class_feature_is_the_token_after_the_final_norm():
    objective, variables = _created()
    encoder = {"params": variables["teacher"]["encoder"]}
    assert "norm" in encoder["params"]
    images = _batch()["image"]
    tokens = np.asarray(jax.jit(objective.encoder.apply)(encoder, images))
    features = _compiled("encode")(variables, images)
    np.testing.assert_allclose(features["pooled"], tokens[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features["tokens"], tokens[:, 1:], rtol=1e-5, atol=1e-6)


def test_mean_feature_is_pooled_before_a_norm_without_parameters():
    objective = mim_jax.create(_config(pool="mean"))
    variables = jax.jit(lambda: objective.init(jax.random.key(0), objective.batch_spec()))()
    encoder = {"params": variables["teacher"]["encoder"]}
    assert "norm" not in encoder["params"]
    images = _batch()["image"]
    pooled = np.asarray(jax.jit(objective.encoder.apply)(encoder, images))[:, 1:].mean(1)
    expected = (pooled - pooled.mean(1, keepdims=True)) / np.sqrt(pooled.var(1, keepdims=True) + 1e-6)
    features = jax.jit(objective.encode)(variables, images)
    np.testing.assert_allclose(features["pooled"], expected, rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss_and_leaves_the_encoder_as_it_is():
    objective, variables = _created()
    frozen = jax.tree.map(np.array, variables["teacher"])
    optimizer = optax.sgd(0.5, momentum=0.9)
    opt_state = optimizer.init(variables["params"])

    @jax.jit
    def step(variables, opt_state, batch):
        loss = lambda params: objective.loss({**variables, "params": params}, batch, None, RNG, CLOCK)
        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return objective.update({**variables, "params": params, "state": aux["state"]}, CLOCK), opt_state, value

    losses = []
    for i in range(40):
        variables, opt_state, loss = step(variables, opt_state, _batch(32, seed=i))
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < losses[0] - 0.3
    jax.tree.map(np.testing.assert_array_equal, variables["teacher"], frozen)
    held_out = _batch(128, seed=1000)
    predicted = _compiled("predict")(variables, held_out["image"]).argmax(axis=-1)
    assert float((predicted == held_out["label"]).mean()) > 0.7


def test_no_gradient_reaches_the_encoder():
    objective, variables = _created()
    loss = lambda teacher: objective.loss({**variables, "teacher": teacher}, _batch(), None, RNG, CLOCK)[0]
    assert all(not leaf.any() for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(variables["teacher"])))


def test_statistics_are_those_of_the_global_batch():
    _, variables = _created()
    batch = _batch()
    compiled = _compiled("loss")
    single, single_aux = compiled(variables, batch, None, RNG, CLOCK)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
    loss, aux = compiled(jax.device_put(variables, NamedSharding(mesh, P())), sharded, None, RNG, CLOCK)
    assert float(loss) == pytest.approx(float(single), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), aux["state"], single_aux["state"])


def test_bfloat16_is_close_to_float32_and_the_statistics_stay_float32():
    _, variables = _created()
    half = mim_jax.create({**_config(), "compute": {"dtype": "bfloat16", "scan": True}})
    expected, _ = _compiled("loss")(variables, _batch(), None, RNG, CLOCK)
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm mixes bfloat16 and float32
        loss, aux = jax.jit(half.loss)(variables, _batch(), None, RNG, CLOCK)
    assert loss.dtype == aux["state"]["batch_norm"]["variance"].dtype == jnp.float32
    assert float(loss) == pytest.approx(float(expected), rel=2e-2)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="num_classes"):
        mim_jax.create({**_config(), "num_classes": 0})
    objective, variables = _created()
    with pytest.raises(DataError, match="label"):
        objective.loss(variables, {"image": _batch()["image"]}, None, RNG, CLOCK)
