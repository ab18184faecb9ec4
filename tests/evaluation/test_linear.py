import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.evaluation.linear import LinearSweep, count_correct, make_direction

LARS = dict(momentum=0.9, trust_coefficient=0.001, weight_decay=0.0)


def sweep(rates, optimizer="lars", total_steps=20, warmup_steps=4, **options):
    return LinearSweep(make_direction(optimizer, **{**LARS, **options}), tuple(rates), total_steps, warmup_steps)


def batches(steps, batch=16, width=6, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width)) * 2
    for _ in range(steps):
        labels = rng.integers(0, classes, batch)
        features = centres[labels] + rng.normal(size=(batch, width))
        yield features.astype(np.float32), labels.astype(np.int32)


def train(probe, steps, **options):
    state = probe.init(jax.random.key(0), 6, 3)
    update, losses = jax.jit(probe.update), []
    for features, labels in batches(steps, **options):
        state, loss = update(state, features, labels)
        losses.append(np.asarray(loss))
    return state, np.stack(losses)


def test_lars_steps_equal_the_closed_form():
    direction = make_direction("lars", momentum=0.9, trust_coefficient=0.001, weight_decay=0.1)
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(4, 3)), rng.normal(size=3)
    params = {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}
    state, velocity = direction.init(params), {"kernel": np.zeros((4, 3)), "bias": np.zeros(3)}
    for rate in (0.5, 2.0):  # a rate that changes: it must stay outside the momentum
        gradient = {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}
        updates, state = direction.update(jax.tree.map(jnp.float32, gradient), state, params)
        params = jax.tree.map(lambda p, u, rate=rate: p - rate * u, params, updates)
        decayed = gradient["kernel"] + 0.1 * kernel
        decayed *= 0.001 * np.linalg.norm(kernel) / np.linalg.norm(decayed)
        velocity = {
            "kernel": 0.9 * velocity["kernel"] + decayed,
            "bias": 0.9 * velocity["bias"] + gradient["bias"],
        }
        kernel, bias = kernel - rate * velocity["kernel"], bias - rate * velocity["bias"]
    np.testing.assert_allclose(params["kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(params["bias"], bias, rtol=1e-5)


@pytest.mark.parametrize("zero", ["kernel", "gradient"])
def test_lars_factor_is_one_where_a_norm_is_zero(zero):
    direction = make_direction("lars", **LARS)
    params = {"kernel": jnp.full((2, 2), 0.0 if zero == "kernel" else 3.0), "bias": jnp.zeros(2)}
    gradient = {"kernel": jnp.full((2, 2), 0.0 if zero == "gradient" else 5.0), "bias": jnp.ones(2)}
    updates, _ = direction.update(gradient, direction.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], gradient["kernel"])


def test_first_adamw_step_is_the_sign_plus_decay_of_the_kernel_only():
    direction = make_direction("adamw", momentum=0.0, trust_coefficient=0.0, weight_decay=0.5)
    params = {"kernel": jnp.full((1, 2), 4.0), "bias": jnp.full(2, 4.0)}
    gradient = {"kernel": jnp.array([[1e-2, -30.0]]), "bias": jnp.array([7.0, -7.0])}
    updates, _ = direction.update(gradient, direction.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [[1.0 + 2.0, -1.0 + 2.0]], rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], [1.0, -1.0], rtol=1e-5)


def test_unknown_optimizer_is_refused():
    with pytest.raises(ConfigError, match="'sgd'; choose one of lars, adamw"):
        make_direction("sgd", **LARS)


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_a_sweep_equals_heads_trained_one_by_one(optimizer):
    rates = (0.03, 1.0, 8.0)
    together, losses = train(sweep(rates, optimizer), 12)
    for number, rate in enumerate(rates):
        alone, loss = train(sweep([rate], optimizer), 12)
        np.testing.assert_allclose(together.params["kernel"][number], alone.params["kernel"][0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(losses[:, number], loss[:, 0], rtol=1e-4, atol=1e-6)
    kernels = np.asarray(together.params["kernel"])
    assert np.abs(kernels[0] - kernels[2]).max() > 0.1 * np.abs(kernels).max()


def test_schedule_is_a_linear_warm_up_and_half_a_cosine():
    probe = sweep([1.0], total_steps=24, warmup_steps=4)
    at = lambda step: float(probe.schedule(jnp.int32(step)))
    assert [at(step) for step in (0, 1, 4, 14, 24)] == pytest.approx([0.0, 0.25, 1.0, 0.5, 0.0], abs=1e-6)
    assert float(sweep([1.0], warmup_steps=0).schedule(jnp.int32(0))) == 1.0


def test_batch_norm_uses_batch_statistics_in_training_and_running_ones_in_tests():
    state, _ = train(sweep([0.1]), 2)
    mean, variance = np.zeros(6), np.ones(6)
    for features, _ in batches(2):
        mean = 0.9 * mean + 0.1 * features.mean(axis=0)
        variance = 0.9 * variance + 0.1 * features.var(axis=0, ddof=1)
    np.testing.assert_allclose(state.statistics["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.statistics["variance"], variance, rtol=1e-4)
    ((features, labels),) = batches(1, seed=5)
    normalized = (features - mean) / np.sqrt(variance + 1e-6)
    logits = normalized @ np.asarray(state.params["kernel"][0]) + np.asarray(state.params["bias"][0])
    right = count_correct(state, features, labels, jnp.ones(16, bool))
    assert right.tolist() == [(logits.argmax(axis=1) == labels).sum()]


def test_batch_norm_has_no_trainable_parameters_and_scales_do_not_matter():
    probe = sweep([1.0])
    assert set(probe.init(jax.random.key(0), 6, 3).params) == {"kernel", "bias"}
    state, _ = train(probe, 3)
    rescaled = probe.init(jax.random.key(0), 6, 3)
    update = jax.jit(probe.update)
    for features, labels in batches(3):
        rescaled, _ = update(rescaled, 1e3 * features + 50.0, labels)
    np.testing.assert_allclose(rescaled.params["kernel"], state.params["kernel"], rtol=1e-2, atol=1e-4)


def test_rows_that_are_not_valid_are_not_counted():
    state, _ = train(sweep([1.0, 50.0], total_steps=40), 40)
    features, labels = next(batches(1))
    every = count_correct(state, features, labels, jnp.ones(16, bool))
    half = count_correct(state, features, labels, jnp.arange(16) < 8)
    rest = count_correct(state, features, labels, jnp.arange(16) >= 8)
    assert every.dtype == jnp.int32
    assert (half + rest).tolist() == every.tolist()
    assert int(every.max()) > 8


@pytest.mark.parametrize(("optimizer", "rates"), [("lars", (1.0, 50.0)), ("adamw", (1e-4, 0.1))])
def test_separable_classes_are_learnt_by_the_better_rate(optimizer, rates):
    state, losses = train(sweep(rates, optimizer, total_steps=60), 60, batch=64)
    features, labels = next(batches(1, batch=512))
    right = count_correct(state, features, labels, jnp.ones(512, bool)) / 512
    assert float(right[1]) > 0.95
    assert losses[-1, 1] < 0.3 < losses[0, 1]
