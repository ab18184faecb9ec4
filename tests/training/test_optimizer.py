import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.training.optimizer import Rates, layer_scales, make_optimizer
from mim_jax.training.paths import leaf_names, map_with_name

LR, DECAY = 0.1, 0.05
RATES = Rates(lambda step: jnp.full((), LR, jnp.float32), lambda step: jnp.full((), DECAY, jnp.float32))


@pytest.fixture
def config():
    return mim_jax.default_config(method="mae")


@pytest.fixture(scope="module")
def params():
    shapes = {
        "encoder": {
            "class_token": (4,),
            "patch_embed": {"projection": {"kernel": (3, 4), "bias": (4,)}},
            "stack": {
                "blocks": {
                    "attention": {"qkv": {"kernel": (2, 4, 3, 2, 2), "bias": (2, 3, 2, 2)}},
                    "mlp": {"fc1": {"kernel": (2, 4, 8)}},
                }
            },
            "norm": {"scale": (4,)},
        },
        "head": {"kernel": (4, 5), "bias": (5,)},
    }
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    values = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(leaves)]
    return tree.unflatten(values)


@pytest.fixture(scope="module")
def grads(params):
    return jax.tree.map(lambda p: jnp.cos(3.0 * p), params)


def step_twice(config, params, grads):
    optimizer = make_optimizer(config, params, RATES)
    state = optimizer.init(params)
    for step in range(2):
        updates, state = optimizer.update(grads, state, params, step=jnp.int32(step))
        params = optax.apply_updates(params, updates)
    return params, state


def test_adamw_equals_optax(config, params, grads):
    decayed = map_with_name(lambda name, _: not name.endswith(("bias", "scale")), params)
    reference = optax.adamw(LR, b1=0.9, b2=0.95, weight_decay=DECAY, mask=decayed)
    state, expected = reference.init(params), params
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(2):
            updates, state = reference.update(grads, state, expected)
            expected = optax.apply_updates(expected, updates)
    actual, _ = step_twice(config, params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected)


def test_adamw_equals_torch(config, params, grads):
    torch = pytest.importorskip("torch")
    actual, _ = step_twice(config, params, grads)
    weight = torch.nn.Parameter(torch.tensor(np.asarray(params["head"]["kernel"])))
    reference = torch.optim.AdamW([weight], lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=DECAY)
    weight.grad = torch.tensor(np.asarray(grads["head"]["kernel"]))
    reference.step()
    reference.step()
    np.testing.assert_allclose(actual["head"]["kernel"], weight.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_only_weights_decay(config, params, grads):
    config.optimizer.b1 = 0.0
    zero_grads = jax.tree.map(jnp.zeros_like, grads)
    moved, _ = step_twice(config, params, zero_grads)
    changed = [
        name
        for name, a, b in zip(leaf_names(params), jax.tree.leaves(params), jax.tree.leaves(moved), strict=True)
        if not np.array_equal(a, b)
    ]
    assert changed == [name for name in leaf_names(params) if not name.endswith(("bias", "scale"))]


def test_layer_scales_are_the_sheets(params):
    scales = layer_scales(params, 0.65)
    assert float(scales["encoder"]["class_token"]) == pytest.approx(0.274625)
    assert float(scales["encoder"]["patch_embed"]["projection"]["bias"]) == pytest.approx(0.274625)
    blocks = scales["encoder"]["stack"]["blocks"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_allclose(blocks.ravel(), [0.4225, 0.65], rtol=1e-6)
    assert float(scales["encoder"]["norm"]["scale"]) == 1.0
    assert float(scales["head"]["kernel"]) == 1.0


def test_layer_decay_scales_the_update(config, params, grads):
    config.optimizer.weight_decay = 0.0
    plain, _ = step_twice(config, params, grads)
    config.optimizer.layer_decay = 0.5
    scaled, _ = step_twice(config, params, grads)
    ratio = jax.tree.map(lambda p, a, b: (b - p) / (a - p), params, plain, scaled)
    np.testing.assert_allclose(ratio["encoder"]["class_token"], np.full(4, 0.125), rtol=1e-2)
    fc1 = ratio["encoder"]["stack"]["blocks"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_allclose(fc1.mean(axis=(1, 2)), [0.25, 0.5], rtol=1e-2)


def test_lars_is_the_closed_form_layer_by_layer(config, params, grads):
    config.optimizer.update(name="lars", momentum=0.9, no_decay=("bias$", "scale$"))
    rates = Rates(RATES.learning_rate, lambda step: jnp.zeros((), jnp.float32))
    optimizer = make_optimizer(config, params, rates)
    state = optimizer.init(params)
    name = ("encoder", "stack", "blocks", "mlp", "fc1", "kernel")
    value, grad = params, grads
    for key in name:
        value, grad = value[key], grad[key]
    expected, momentum = np.asarray(value).copy(), np.zeros(value.shape, np.float32)
    current = params
    for step in range(3):
        for layer in range(2):
            g = np.asarray(grad[layer])
            ratio = 0.001 * np.linalg.norm(expected[layer]) / np.linalg.norm(g)
            momentum[layer] = 0.9 * momentum[layer] + ratio * g
            expected[layer] -= LR * momentum[layer]
        updates, state = optimizer.update(grads, state, current, step=jnp.int32(step))
        current = optax.apply_updates(current, updates)
    actual = current
    for key in name:
        actual = actual[key]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    # Parameters exempt from decay take plain momentum.
    bias = params["head"]["bias"] - LR * (1 + 1.9 + 2.71) * grads["head"]["bias"]
    np.testing.assert_allclose(current["head"]["bias"], bias, rtol=1e-5, atol=1e-6)


def test_lars_of_a_zero_weight_has_ratio_one(config, params, grads):
    config.optimizer.name = "lars"
    params = jax.tree.map(jnp.zeros_like, params)
    optimizer = make_optimizer(config, params, RATES)
    updates, _ = optimizer.update(grads, optimizer.init(params), params, step=jnp.int32(0))
    np.testing.assert_allclose(updates["head"]["kernel"], -LR * grads["head"]["kernel"], rtol=1e-6)


def lamb_twice(p, g, decays, always_adapt=False, bias_correction=True):
    """Two steps of timm's LAMB on one tensor, its gradient clipped already."""
    m = v = np.zeros_like(p)
    for step in (1, 2):
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        share1, share2 = (1 - 0.9**step, 1 - 0.95**step) if bias_correction else (1.0, 1.0)
        update = (m / share1) / (np.sqrt(v / share2) + 1e-6)
        if decays:
            update = update + DECAY * p
        if decays or always_adapt:
            update = update * np.linalg.norm(p) / np.linalg.norm(update)
        p = p - LR * update
    return p


@pytest.mark.parametrize(
    "variant",
    [{}, {"always_adapt": True}, {"always_adapt": True, "bias_correction": False}],
    ids=["plain", "always_adapt", "uncorrected"],
)
def test_lamb_is_the_closed_form_layer_by_layer(config, params, grads, variant):
    config.optimizer.update(name="lamb", eps=1e-6, clip_norm=1.0, **variant)
    actual, _ = step_twice(config, params, grads)
    norm = float(optax.tree.norm(grads))
    assert norm > 1.0
    leaves = [jax.tree.leaves(tree) for tree in (params, grads, actual)]
    for name, p, g, moved in zip(leaf_names(params), *leaves, strict=True):
        for layer in range(len(p)) if "/blocks/" in name else [...]:
            before, grad = (np.asarray(x[layer], np.float64) for x in (p, g / norm))
            expected = lamb_twice(before, grad, not name.endswith(("bias", "scale")), **variant)
            np.testing.assert_allclose(moved[layer], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_muon_orthogonalises_attention_kernels(config, params, grads):
    config.optimizer.update(name="muon", weight_decay=0.0)
    optimizer = make_optimizer(config, params, Rates(RATES.learning_rate, lambda step: jnp.zeros((), jnp.float32)))
    updates, _ = optimizer.update(grads, optimizer.init(params), params, step=jnp.int32(0))
    kernel = np.asarray(updates["encoder"]["stack"]["blocks"]["attention"]["qkv"]["kernel"]) / LR
    query = kernel[0, :, 0].reshape(4, 4)
    singular = np.linalg.svd(query, compute_uv=False)
    assert singular.max() / singular.min() < 2.5, singular  # Newton-Schulz brings all near one value


def test_frozen_parameters_stay_and_have_no_moments(config, params, grads):
    config.optimizer.frozen = ("^encoder/",)
    moved, state = step_twice(config, params, grads)
    np.testing.assert_array_equal(moved["encoder"]["class_token"], params["encoder"]["class_token"])
    assert not np.array_equal(moved["head"]["kernel"], params["head"]["kernel"])
    sizes = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert sizes == 2 * (20 + 5) + 1  # two moments of the head, one counter


def test_clipping_bounds_the_gradient(config, params, grads):
    config.optimizer.update(name="sgd", momentum=0.0, weight_decay=0.0, clip_norm=0.5)
    optimizer = make_optimizer(config, params, Rates(RATES.learning_rate, lambda step: jnp.zeros((), jnp.float32)))
    updates, _ = optimizer.update(grads, optimizer.init(params), params, step=jnp.int32(0))
    assert float(optax.tree.norm(updates)) == pytest.approx(LR * 0.5, rel=1e-5)


def test_mistakes_are_named(config, params):
    config.optimizer.no_decay = ("bias$", "sclae$")
    with pytest.raises(ConfigError, match=r"optimizer\.no_decay.*sclae"):
        make_optimizer(config, params, RATES)
    config.optimizer.name = "adam"
    with pytest.raises(ConfigError, match=r"optimizer\.name.*adamw"):
        make_optimizer(config, params, RATES)
