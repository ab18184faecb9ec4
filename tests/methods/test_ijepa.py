import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mim_jax
from mim_jax.models import joint_embedding
from tests.tiny import clock, synthetic_batch

TINY = dict(
    method="ijepa",
    image_size=24,
    model=dict(width=16, depth=2, heads=2, patch_size=4),
    predictor=dict(width=8, depth=1),
)


@pytest.fixture(scope="module")
def ijepa():
    return mim_jax.create(TINY)


@pytest.fixture(scope="module")
def batch(ijepa):
    return synthetic_batch(ijepa, 4)


@pytest.fixture(scope="module")
def variables(ijepa, batch):
    """With a teacher that differs from the encoder."""
    variables = jax.jit(lambda: ijepa.init(jax.random.key(0), batch))()
    other = jax.jit(lambda: ijepa.init(jax.random.key(1), batch))()
    return {**variables, "teacher": other["teacher"]}


@pytest.fixture(scope="module")
def masks(ijepa, batch):
    return ijepa.masks({}, batch, jax.random.key(2), clock())


@pytest.fixture(scope="module")
def loss(ijepa):
    return jax.jit(lambda v, b, m: ijepa.loss(v, b, m, jax.random.key(0), clock()))


@pytest.mark.parametrize(
    ("model", "depth", "encoder", "predictor"),
    [
        (dict(width=768, depth=12, heads=12, patch_size=16), 6, 85_646_592, 11_238_912),
        (dict(width=1024, depth=24, heads=16, patch_size=16), 12, 303_098_880, 22_082_560),
        (dict(width=1280, depth=32, heads=16, patch_size=14), 12, 630_434_560, 22_279_424),
        (dict(width=1408, depth=40, heads=16, patch_size=16, mlp_ratio=48 / 11), 16, 1_011_092_608, 29_475_712),
    ],
    ids=["B", "L", "H", "g"],
)
def test_parameter_counts_are_the_sheets(model, depth, encoder, predictor):
    objective = mim_jax.create(dict(method="ijepa", model=model, predictor=dict(depth=depth)))
    variables = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())
    count = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in variables["params"].items()}
    assert count == {"encoder": encoder, "predictor": predictor}
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["teacher"])) == encoder


def test_the_teacher_starts_as_a_copy(ijepa, batch):
    variables = jax.jit(lambda: ijepa.init(jax.random.key(0), batch))()
    jax.tree.map(np.testing.assert_array_equal, variables["teacher"]["encoder"], variables["params"]["encoder"])


def test_targets_are_standardised_with_the_official_epsilon(ijepa, variables, batch, masks, loss):
    _, aux = loss(variables, batch, masks)
    raw = ijepa.encoder.apply({"params": variables["teacher"]["encoder"]}, batch["image"])
    mean, variance = raw.mean(axis=-1, keepdims=True), raw.var(axis=-1, keepdims=True)
    full = np.asarray((raw - mean) / jnp.sqrt(variance + 1e-5))
    for index, ids in enumerate(masks.targets):
        block = np.take_along_axis(full, np.asarray(ids)[:, :, None], axis=1)
        np.testing.assert_allclose(aux["target"][index * 4 : index * 4 + 4], block, atol=1e-5)


def test_targets_keep_their_digits_where_a_token_has_a_large_mean(variables, batch, masks, loss):
    """As one of the teacher's final norm may: its bias here is 30 in every channel."""
    encoder = variables["teacher"]["encoder"]
    norm = {**encoder["norm"], "bias": encoder["norm"]["bias"] + 30.0}
    shifted = {**variables, "teacher": {"encoder": {**encoder, "norm": norm}}}
    targets = [loss(given, batch, masks)[1]["target"] for given in (shifted, variables)]
    np.testing.assert_allclose(*targets, rtol=0, atol=2e-5)


def test_loss_is_smooth_l1_with_beta_one(variables, batch, masks, loss):
    value, aux = loss(variables, batch, masks)
    d = np.abs(np.asarray(aux["prediction"] - aux["target"]))
    expected = np.where(d < 1, 0.5 * d**2, d - 0.5).mean()
    assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("difference", "expected"), [(0.0, 0.0), (2.0, 1.5), (0.5, 0.125)])
def test_closed_cases_of_the_loss(difference, expected):
    x = jnp.zeros((2, 3))
    assert float(joint_embedding.optax.losses.huber_loss(x + difference, x, delta=1.0).mean()) == expected


def test_each_block_is_predicted_by_itself(variables, batch, masks, loss):
    swapped = masks._replace(targets=(masks.targets[1], masks.targets[0], masks.targets[2], masks.targets[2]))
    first, second = loss(variables, batch, masks)[1]["prediction"], loss(variables, batch, swapped)[1]["prediction"]
    np.testing.assert_allclose(second[:4], first[4:8], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second[4:8], first[:4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second[8:12], first[8:12], rtol=1e-5, atol=1e-6)


def test_two_contexts_are_target_major(ijepa, variables, batch, masks):
    other = ijepa.masks({}, batch, jax.random.key(7), clock()).context[0]
    loss = jax.jit(lambda contexts: ijepa.loss(variables, batch, (contexts, masks.targets), jax.random.key(0), clock()))
    run = lambda contexts: loss(contexts)[1]
    one, two = run([masks.context[0]])["prediction"], run([other])["prediction"]
    both = run([masks.context[0], other])
    assert both["prediction"].shape == (4 * 2 * 4, *one.shape[1:])
    blocks = both["prediction"].reshape(4, 2, 4, *one.shape[1:])
    np.testing.assert_allclose(blocks[:, 0], one.reshape(4, 4, *one.shape[1:]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(blocks[:, 1], two.reshape(4, 4, *one.shape[1:]), rtol=1e-4, atol=1e-5)


def test_latent_does_not_depend_on_removed_pixels(variables, batch, masks, loss):
    kept = np.zeros((4, 36), bool)
    np.put_along_axis(kept, np.asarray(masks.context[0]), True, axis=1)
    pixels = np.repeat(np.repeat(kept.reshape(4, 6, 6), 4, axis=1), 4, axis=2)[..., None]
    other = {"image": jnp.where(pixels, batch["image"], jnp.zeros((), jnp.float32))}
    np.testing.assert_array_equal(
        loss(variables, batch, masks)[1]["latent"], loss(variables, other, masks)[1]["latent"]
    )


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.996), (4, 0.998), (8, 1.0)])
def test_momentum_rises_linearly_to_one(ijepa, variables, step, momentum):
    updated = jax.jit(ijepa.update)(variables, clock(step, 8))["teacher"]["encoder"]
    expected = jax.tree.map(
        lambda t, p: momentum * t + (1 - momentum) * p, variables["teacher"]["encoder"], variables["params"]["encoder"]
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), updated, expected)


def test_encode_uses_the_teacher(ijepa, variables, batch):
    features = ijepa.encode(variables, batch["image"])
    changed = {**variables, "params": jax.tree.map(jnp.zeros_like, variables["params"])}
    np.testing.assert_array_equal(ijepa.encode(changed, batch["image"])["pooled"], features["pooled"])
    np.testing.assert_allclose(features["pooled"], features["tokens"].mean(axis=1), rtol=1e-5, atol=1e-6)


def test_it_predicts_nothing_to_look_at(ijepa, variables, batch, masks):
    with pytest.raises(mim_jax.errors.ConfigError, match="nothing one can look at"):
        ijepa.reconstruct(variables, batch, masks)
