"""MP3: the sheet's checks; there is no official code to compare with."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mim_jax
from mim_jax import TokenMask
from mim_jax.errors import ConfigError
from mim_jax.layers.block import Block, layer_norm
from mim_jax.layers.patches import patchify, unpatchify
from tests.tiny import ROOT, clock, synthetic_batch

TINY = dict(method="mp3", image_size=16, mask_ratio=0.6, model=dict(width=16, depth=2, heads=2, patch_size=4))
KEY = jax.random.key(0)
TOKENS, CONTEXT = 16, 7  # int(0.6 * 16) = 9 are masked


@pytest.fixture(scope="module")
def mp3():
    return mim_jax.create(TINY)


@pytest.fixture(scope="module")
def batch(mp3):
    return synthetic_batch(mp3, 3)


@pytest.fixture(scope="module")
def variables(mp3, batch):
    """Every parameter of order one after its layer, so that attention is far from uniform."""
    fresh = jax.jit(lambda: mp3.init(KEY, batch))()
    return jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim > 1 and leaf.std() > 0 else leaf, fresh)


@pytest.fixture(scope="module")
def masks(mp3, batch):
    return mp3.masks({}, batch, jax.random.key(1), clock())


@pytest.fixture(scope="module")
def logits(mp3, variables):
    """`(images [B, H, W, C], masks)` to logits `[B, N, N]`."""
    apply = jax.jit(lambda images, m: mp3.loss(variables, {"image": images}, m, KEY, clock())[1]["prediction"])
    return lambda images, m: np.asarray(apply(images, m))


def replace_patch(images, index, value):
    patches = patchify(jnp.asarray(images), (4, 4))
    return unpatchify(patches.at[:, index].set(value), (4, 4), (4, 4))


def test_counts(mp3, masks):
    assert masks.num_keep == CONTEXT == mp3.num_context
    full = mim_jax.create(dict(method="mp3"))
    assert full.num_context == 49


@pytest.mark.parametrize(
    ("size", "encoder", "head"),
    [
        (dict(width=768, depth=12, heads=12, patch_size=16), 85_646_592, 150_724),
        (dict(width=384, depth=12, heads=6, patch_size=16), 21_589_632, 75_460),
    ],
    ids=["B", "S"],
)
def test_parameter_counts_are_the_sheets(size, encoder, head):
    config = mim_jax.load_config(str(ROOT / "configs" / "mp3_vit_b16_in1k.py"))
    config.model.update(size)
    objective = mim_jax.create(config)
    params = jax.eval_shape(objective.init, KEY, objective.batch_spec())["params"]
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}
    assert count == {"encoder": encoder, "head": head}


def test_permuting_the_patches_permutes_the_logits(batch, masks, logits):
    order = np.random.default_rng(0).permutation(TOKENS)
    images = unpatchify(patchify(batch["image"], (4, 4))[:, order], (4, 4), (4, 4))
    permuted = TokenMask.from_bool(np.asarray(masks.mask)[:, order], CONTEXT)
    np.testing.assert_allclose(logits(images, permuted), logits(batch["image"], masks)[:, order], atol=1e-5, rtol=1e-5)


def test_the_context_is_what_the_mask_keeps(variables, batch, logits):
    noise = jax.random.uniform(jax.random.key(5), (3, 16))
    masks = TokenMask.from_noise(noise, 8)
    other = mim_jax.create({**TINY, "mask_ratio": 0.5})
    assert other.num_context == 8
    _, aux = jax.jit(lambda m: other.loss(variables, batch, m, KEY, clock()))(masks)
    np.testing.assert_array_equal(logits(batch["image"], masks), aux["prediction"])


def test_a_zero_head_gives_the_logarithm_of_the_places(batch, masks):
    objective = mim_jax.create({**TINY, "zero_head": True})
    variables = jax.jit(lambda: objective.init(KEY, batch))()
    loss, _ = jax.jit(objective.loss)(variables, batch, masks, KEY, clock())
    assert float(loss) == pytest.approx(math.log(TOKENS), rel=1e-6)


def test_a_context_of_all_patches_is_a_plain_vit(mp3, variables, batch, logits):
    everything = TokenMask.from_noise(jax.random.uniform(jax.random.key(4), (3, TOKENS)), TOKENS)
    objective = mim_jax.create({**TINY, "mask_ratio": 0.0})
    _, aux = jax.jit(objective.loss)(variables, batch, everything, KEY, clock())
    plain = objective.encode(variables, batch["image"])["tokens"]
    expected = objective.head.apply({"params": variables["params"]["head"]}, plain)
    np.testing.assert_allclose(aux["prediction"], expected, atol=1e-5, rtol=1e-5)
    assert not np.allclose(aux["prediction"], logits(batch["image"], everything.replace(num_keep=CONTEXT)))


def test_it_equals_attention_with_all_keys_but_the_contexts_hidden(mp3, variables, batch, masks, logits):
    """The same blocks one by one in raster order, with the keys outside the context taken out by `valid`."""
    params = variables["params"]
    vit = mp3.encoder

    stack = params["encoder"]["stack"]["blocks"]
    kernel = params["encoder"]["patch_embed"]["projection"]
    x = patchify(batch["image"], (4, 4)) @ kernel["kernel"] + kernel["bias"][None, None]
    block = Block(vit.heads, 4 * vit.width, init_scheme=vit.init_scheme, compute=vit.compute)
    for layer in range(vit.depth):
        weights = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stack)
        x, _ = block.apply({"params": weights}, x, jnp.float32(0.0), None, ~masks.mask)
    x = layer_norm(vit.compute, None).apply({"params": params["encoder"]["norm"]}, x)
    expected = x @ params["head"]["kernel"] + params["head"]["bias"][None, None]
    np.testing.assert_allclose(logits(batch["image"], masks), expected, atol=1e-4, rtol=1e-4)


def test_patches_outside_the_context_know_nothing_of_each_other(batch, masks, logits):
    everywhere = TokenMask(
        mask=jnp.tile(masks.mask[:1], (3, 1)), order=jnp.tile(masks.order[:1], (3, 1)), num_keep=CONTEXT
    )
    outside, inside = int(masks.ids_hidden[0, 0]), int(masks.ids_keep[0, 0])
    before = logits(batch["image"], everywhere)
    after = logits(replace_patch(batch["image"], outside, 3.0), everywhere)
    others = np.arange(TOKENS) != outside
    np.testing.assert_allclose(after[:, others], before[:, others], atol=1e-5, rtol=1e-5)
    assert np.abs(after[:, outside] - before[:, outside]).max() > 1e-2
    changed = logits(replace_patch(batch["image"], inside, 3.0), everywhere)
    assert (np.abs(changed - before).max(axis=(0, 2)) > 1e-3).all()


def test_equal_patches_outside_the_context_get_equal_logits(batch, masks, logits):
    one, other = np.asarray(masks.ids_hidden)[0, :2]
    images = replace_patch(batch["image"], other, patchify(batch["image"], (4, 4))[:, one])
    found = logits(images, masks)[0]
    np.testing.assert_allclose(found[one], found[other], atol=1e-5, rtol=1e-5)


def test_pixels_outside_the_context_get_gradient_from_their_own_patch_alone(mp3, variables, batch, masks):
    patch = int(masks.ids_hidden[0, 0])

    def error_elsewhere(images):
        logits = mp3.loss(variables, {"image": images}, masks, KEY, clock())[1]["prediction"][0]
        error = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(TOKENS))
        return error.sum() - error[patch], error[patch]

    elsewhere, own = jax.jit(jax.jacrev(error_elsewhere))(batch["image"])
    elsewhere, own = (np.abs(patchify(g, (4, 4))[0, patch]).max() for g in (elsewhere, own))
    assert own > 1e-4 and elsewhere < 1e-4 * own


@pytest.mark.parametrize("loss_on", ["all", "masked"])
def test_loss_is_the_cross_entropy_of_the_counted_patches(variables, batch, masks, loss_on):
    objective = mim_jax.create({**TINY, "loss_on": loss_on})
    loss, aux = jax.jit(objective.loss)(variables, batch, masks, KEY, clock())
    log_probability = jax.nn.log_softmax(aux["prediction"])[:, np.arange(TOKENS), np.arange(TOKENS)]
    counted = np.asarray(masks.mask) if loss_on == "masked" else np.ones((3, TOKENS), bool)
    np.testing.assert_allclose(loss, -np.asarray(log_probability)[counted].mean(), rtol=1e-5)
    hits = np.asarray(aux["prediction"]).argmax(-1) == np.arange(TOKENS)
    np.testing.assert_allclose(aux["metrics"]["accuracy"], hits[counted].mean(), rtol=1e-6)


def test_one_image_of_distinct_patches_is_learnt_by_heart():
    objective = mim_jax.create({**TINY, "mask_ratio": 0.0})
    batch = synthetic_batch(objective, 1)
    params = jax.jit(lambda: objective.init(KEY, batch))()["params"]
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, rng):
        def loss(params):
            masks = objective.masks({}, batch, rng, clock())
            value, aux = objective.loss({"params": params}, batch, masks, rng, clock())
            return value, aux["metrics"]["accuracy"]

        (_, accuracy), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, accuracy

    state = optimizer.init(params)
    for number in range(60):
        params, state, accuracy = step(params, state, jax.random.key(number))
    assert float(accuracy) == 1.0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio is 1"),
        ({"loss_on": "context"}, "loss_on is 'context'"),
        ({"loss_on": "masked", "mask_ratio": 0.01}, "loss_on is 'masked'"),
        ({"model": {**TINY["model"], "class_token": True}}, r"model\.class_token"),
    ],
)
def test_bad_values_are_refused(change, match):
    with pytest.raises(ConfigError, match=match):
        mim_jax.create({**TINY, **change})
