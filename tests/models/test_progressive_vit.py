import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mim_jax
from mim_jax.masking.token_mask import TokenMask
from mim_jax.models import vit
from mim_jax.models.progressive_vit import encode_progressively
from mim_jax.training.flops import count_flops

DEPTH, PATCHES, KEY = 4, 16, jax.random.key(0)


def build(**model):
    model = dict(width=32, depth=DEPTH, heads=4, patch_size=4) | model
    return vit.build(mim_jax.resolve(dict(method="mae", image_size=16, model=model)))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(KEY, (2, 16, 16, 3))


@pytest.fixture(scope="module")
def encoder():
    return build()


@pytest.fixture(scope="module")
def params(encoder, images):
    leaves, tree = jax.tree.flatten(jax.jit(encoder.init)(KEY, images)["params"])
    keys = jax.random.split(KEY, len(leaves))
    noisy = [leaf + 0.1 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


@pytest.fixture(scope="module")
def stages():
    """Nested sets of 12, 8 and 3 patches, each in an order of its own."""
    order = jnp.stack([jax.random.permutation(jax.random.key(i), PATCHES) for i in range(2)])
    shuffled = jnp.concatenate([order[:, 7::-1], order[:, 8:]], axis=1)
    return {
        0: TokenMask.from_order(order, 12),
        1: TokenMask.from_order(shuffled, 8),
        3: TokenMask.from_bool(TokenMask.from_order(order, 3).mask, 3),
    }


def test_nothing_dropped_is_the_plain_encoder(encoder, params, images):
    plain, layers = encoder.apply({"params": params}, images, return_layers=True)
    found = encode_progressively(encoder, params, images, inputs=(1, 3, DEPTH))
    np.testing.assert_allclose(found.tokens, plain, atol=1e-5)
    assert sorted(found.inputs) == [1, 3, DEPTH]
    for block, x in found.inputs.items():
        np.testing.assert_allclose(x, layers[block - 1], atol=1e-5)


def test_dropped_tokens_are_gone_from_then_on(encoder, params, images, stages):
    """The same as attention that is kept from seeing them."""
    found = encode_progressively(encoder, params, images, alive=stages, inputs=(0, 1, 2, 3))
    counts = {0: 12, 1: 8, 2: 8, 3: 3}
    assert {block: x.shape for block, x in found.inputs.items()} == {b: (2, 1 + n, 32) for b, n in counts.items()}
    x = encode_progressively(encoder, params, images, inputs=(0,), until=0).inputs[0]
    valid = jnp.ones((2, 1 + PATCHES), bool)
    for block in range(DEPTH):
        if block in stages:
            valid = jnp.concatenate([valid[:, :1], ~stages[block].mask], axis=1)
        sliced = jax.tree.map(lambda leaf, i=block: leaf[i : i + 1], params["stack"]["blocks"])
        stack = encoder.block_stack(depth=1)
        x = stack.apply({"params": {"blocks": sliced}}, x, None, valid)[0]
    mean = x.mean(axis=-1, keepdims=True)
    x = (x - mean) / jnp.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    x = x * params["norm"]["scale"][None, None] + params["norm"]["bias"][None, None]
    ids = stages[3].ids_keep[:, :, None]
    np.testing.assert_allclose(found.tokens[:, 0], x[:, 0], atol=2e-5)
    np.testing.assert_allclose(found.tokens[:, 1:], jnp.take_along_axis(x[:, 1:], ids, axis=1), atol=2e-5)


def test_what_is_dropped_costs_nothing(encoder, params, images, stages):
    def flops(alive, until=None):
        return count_flops(lambda p, x: encode_progressively(encoder, p, x, alive=alive, until=until), params, images)

    embedding, whole = flops({}, until=0), flops({})
    assert flops({}, until=2) - embedding == pytest.approx((whole - embedding) / 2)
    progressive = flops(stages) - embedding
    # Per token 12 D^2 + 2 T D multiply-adds in a sequence of T tokens.
    share = sum(t * (12 * 32 + 2 * t) for t in (13, 9, 9, 4)) / (4 * 17 * (12 * 32 + 2 * 17))
    assert progressive / (whole - embedding) == pytest.approx(share, rel=1e-6)


def test_scan_equals_loop_and_rematerialisation_changes_nothing(params, images, stages):
    results = []
    for compute in (dict(scan=True), dict(scan=False), dict(scan=True, remat="full")):
        model = dict(width=32, depth=DEPTH, heads=4, patch_size=4)
        encoder = vit.build(mim_jax.resolve(dict(method="mae", image_size=16, model=model, compute=compute)))

        def total(params, encoder=encoder):
            return jnp.square(encode_progressively(encoder, params, images, alive=stages).tokens[:, 1:, 0]).sum()

        results.append(jax.jit(jax.value_and_grad(total))(params))
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), results[0], other)


def test_drop_path_has_each_blocks_own_rate(params, images, stages, monkeypatch):
    encoder, asked = build(drop_path=0.6), []
    original = vit.ViT.block_stack

    def spy(self, **changes):
        asked.append(changes)
        return original(self, **changes)

    monkeypatch.setattr(vit.ViT, "block_stack", spy)
    one, other, same = (
        encode_progressively(encoder, params, images, alive=stages, rng=jax.random.key(seed)).tokens
        for seed in (1, 2, 1)
    )
    rates = [np.linspace(a["first_drop_path"], a["drop_path"], a["depth"]) for a in asked[:3]]
    np.testing.assert_allclose(np.concatenate(rates), np.linspace(0.0, 0.6, DEPTH))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_registers_and_class_token_are_never_dropped(images, stages):
    encoder = build(num_registers=2)
    params = encoder.init(KEY, images)["params"]
    changed = {**params, "registers": params["registers"] + 1.0}
    found, other = (encode_progressively(encoder, p, images, alive=stages, inputs=(3,)) for p in (params, changed))
    assert found.tokens.shape == (2, 4, 32) and found.inputs[3].shape == (2, 4, 32)
    assert not np.allclose(found.tokens, other.tokens)


def test_an_encoder_without_a_class_token(images, stages):
    encoder = build(class_token=False, pool="mean")
    params = encoder.init(KEY, images)["params"]
    plain = encoder.apply({"params": params}, images)
    np.testing.assert_allclose(encode_progressively(encoder, params, images).tokens, plain, atol=1e-5)
    assert encode_progressively(encoder, params, images, alive=stages).tokens.shape == (2, 3, 32)
