import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.interop.cnn_blocks import convnext_encoder
from mim_jax.interop.layout import Context, flatten
from mim_jax.layers.compute import Compute
from mim_jax.models import backbone, convnext
from tests.models import cnn_peer
from tests.models.hlo import moved_arrays

MODEL = dict(depths=(1, 2), widths=(6, 8))
PEER = dict(depths=[1, 2], hidden_sizes=[6, 8], num_stages=2)
BATCH = 5  # no other axis of an activation is a multiple of five
CELLS = [[1, 0, 1, 0, 0, 1], [0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 1], [1, 0, 0, 1, 1, 0]]
ACTIVE = np.asarray(CELLS, bool).reshape(BATCH, 2, 3)  # of 8 pixels
CASES = {"intact": {}, "masked": dict(active=ACTIVE), "gathered": dict(active=ACTIVE, num_active=3)}


def config(compute=None, image_size=(16, 24), **model):
    full = ConfigDict(
        dict(image_size=224, channels=3, model=convnext.default_config(), compute=Compute.default_config())
    )
    with full.ignore_type():
        full.image_size = image_size
    full.model.update({**MODEL, **model})
    full.compute.update(compute or {})
    return full


def build(compute=None, final_norm=False, **model):
    return convnext.build(config(compute, **model), final_norm=final_norm)


IMAGES = np.random.default_rng(0).normal(size=(BATCH, 16, 24, 3)).astype(np.float32)
COTANGENT = np.random.default_rng(1).normal(size=(BATCH, 2, 3, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    """The peer's weights."""
    empty = jax.eval_shape(build().init, jax.random.key(0), IMAGES)["params"]
    return import_tensors(cnn_peer.make("convnext", **PEER).named_parameters(), empty)


def import_tensors(tensors, like):
    tensors = cnn_peer.officially("convnext", tensors)
    context = Context(config=config(), shapes={}, structure=None)
    contract = {"params": {"encoder": like, "norm": {"scale": np.empty(8), "bias": np.empty(8)}}}
    return cnn_peer.fill(convnext_encoder("", "params/encoder", context), tensors, contract)["params"]["encoder"]


@functools.cache
def step(case, compute=()):
    """The compiled gradient of a linear function of the last map, with all maps."""
    encoder = build(dict(compute))

    def loss(params, images):
        maps = encoder.apply({"params": params}, images, return_stages=True, **CASES[case])
        return (maps[-1] * COTANGENT).sum(), maps

    params = jax.eval_shape(encoder.init, jax.random.key(0), IMAGES)["params"]
    return jax.jit(jax.grad(loss, has_aux=True)).lower(params, IMAGES).compile()


def close(ours, expected, tolerance=1e-5):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(float(np.abs(other).max()), 1e-6))


@pytest.mark.parametrize("case", CASES)
def test_maps_and_gradients_equal_pytorchs(case, params):
    network = cnn_peer.make("convnext", **PEER).double()
    images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).double()
    if case != "intact":
        active = torch.from_numpy(ACTIVE)[:, None]
        network, images = cnn_peer.sparsify(network, active), cnn_peer.Sparse(active).hide(images)
    expected = network(images).last_hidden_state
    (expected * torch.from_numpy(COTANGENT).permute(0, 3, 1, 2)).sum().backward()
    gradient, maps = step(case)(params, IMAGES)
    assert [m.shape for m in maps] == [(BATCH, 4, 6, 6), (BATCH, 2, 3, 8)]
    close(maps[-1], expected.detach().permute(0, 2, 3, 1).numpy())
    network.layernorm.weight.grad = network.layernorm.bias.grad = torch.zeros(8).double()  # it follows the average
    gradients = import_tensors(((name, p.grad) for name, p in network.named_parameters()), params)
    close(gradient, gradients, 2e-5)


@pytest.mark.parametrize("case", ["masked", "gathered"])
def test_hidden_sites_are_empty_in_every_map_and_visible_ones_are_not(case, params):
    for maps in step(case)(params, IMAGES)[1]:
        side = maps.shape[1] // 2
        seen = np.repeat(np.repeat(ACTIVE, side, axis=1), side, axis=2)
        np.testing.assert_array_equal((np.asarray(maps) != 0.0).any(axis=-1), seen)


@pytest.mark.parametrize("case", ["masked", "gathered"])
def test_hidden_pixels_have_no_influence(case, params):
    seen = np.repeat(np.repeat(ACTIVE, 8, axis=1), 8, axis=2)[..., None]
    changed = np.where(seen, IMAGES, 1e3).astype(np.float32)
    jax.tree.map(np.testing.assert_array_equal, step(case)(params, IMAGES), step(case)(params, changed))


def test_with_every_cell_visible_it_is_the_intact_network(params):
    everything, apply = jnp.ones(ACTIVE.shape, bool), functools.partial(build().apply, {"params": params}, IMAGES)
    expected = jax.jit(apply)()
    for num_active in (None, 6):
        run = functools.partial(apply, active=everything, num_active=num_active)
        close(jax.jit(run)(), expected)


def test_unrolled_and_rematerialised_blocks_change_nothing(params):
    compute = (("scan", False), ("remat", "full"))
    close(step("gathered", compute)(params, IMAGES), step("gathered")(params, IMAGES))


@pytest.mark.parametrize("case", CASES)
def test_no_activation_is_ever_transposed(case):
    moved = [i for i in moved_arrays(step(case).as_text()) if any(n % BATCH == 0 for n in i.shape)]
    assert not moved, [(i.name, i.result) for i in moved]


def test_a_final_norm_is_of_every_visible_token(params):
    encoder = build(final_norm=True)
    norm = {"scale": np.arange(1.0, 9.0, dtype=np.float32), "bias": np.ones((8,), np.float32)}
    tokens = jax.jit(lambda v: encoder.apply(v, IMAGES, active=ACTIVE))({"params": {**params, "norm": norm}})
    seen, last = ACTIVE.reshape(BATCH, 6), np.asarray(step("masked")(params, IMAGES)[1][-1]).reshape(BATCH, 6, 8)
    expected = (last - last.mean(-1, keepdims=True)) / np.sqrt(last.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(tokens, np.where(seen[..., None], expected * norm["scale"] + 1.0, 0.0), atol=1e-5)


def test_drop_path_drops_whole_samples_and_grows(params):
    encoder = build(drop_path=0.9)
    many = jnp.broadcast_to(IMAGES[:1], (12, *IMAGES.shape[1:]))
    out = jax.jit(lambda rng: encoder.apply({"params": params}, many, deterministic=False, rngs={"drop_path": rng}))
    assert len({row.tobytes() for row in np.asarray(out(jax.random.key(0)))}) > 2
    assert encoder.drop_rates() == [(0.0,), (0.45, 0.9)]


def test_it_starts_as_the_official_one():
    params = flatten(jax.jit(build().init)(jax.random.key(0), IMAGES)["params"])
    gammas = [leaf for path, leaf in params.items() if path.endswith("gamma")]
    kernels = jnp.concatenate([leaf.ravel() for path, leaf in params.items() if path.endswith("kernel")])
    assert len(gammas) == 2 and all((leaf == np.float32(1e-6)).all() for leaf in gammas)
    assert abs(float(kernels.std()) / 0.02 - 1.0) < 0.05
    assert not any(leaf.any() for path, leaf in params.items() if path.endswith("bias"))


@pytest.mark.parametrize(("size", "count"), [("S", 49_453_152), ("B", 87_564_416), ("L", 196_227_264)])
def test_standard_sizes_have_the_published_numbers_of_parameters(size, count):
    encoder = build(image_size=224, **convnext.convnext_size(size))
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), images)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count
    assert encoder.patch_size == (32, 32) and encoder.grid == (7, 7) and encoder.strides == (4, 8, 16, 32)


def test_tiny_has_the_published_parameters_with_norm_and_classifier():
    encoder = build(image_size=224, final_norm=True, **convnext.convnext_size("T"))
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), images)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count + (encoder.width + 1) * 1000 == 28_589_128


def test_layer_decay_counts_as_the_official_fine_tuning():
    encoder = build(final_norm=True, image_size=224, **convnext.convnext_size("B"))
    assert encoder.num_layers == 12 and build(image_size=224, **convnext.convnext_size("T")).num_layers == 6
    assert [encoder.layer_ids(f"reduce{n}_conv/kernel") for n in (1, 2, 3)] == [2, 3, 12]
    assert encoder.layer_ids("stage2/blocks/fc1/kernel") == [3 + block // 3 for block in range(27)]
    assert encoder.layer_ids("stage3/blocks/gamma") == [12] * 3
    assert encoder.layer_ids("stem_norm/scale") == 0 and encoder.layer_ids("norm/scale") == 13


def test_a_finer_stem_suits_small_images():
    encoder = build(stem_size=2, image_size=28)
    assert encoder.strides == (2, 4) and encoder.grid == (7, 7)
    assert jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 28, 28, 3)))[0].shape == (1, 49, 8)


def test_a_config_finds_it_by_its_name():
    assert type(backbone.build(config())) is convnext.ConvNeXt
    encoder, norm_follows = backbone.build_supervised(config())
    assert not encoder.final_norm and norm_follows


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (dict(stem_size=3), r"model\.stem_size is 3"),
        (dict(widths=(6, 0)), r"model\.widths"),
        (dict(image_size=20), r"image_size 20x20 is not divisible by 8"),
    ],
)
def test_bad_configs_are_refused(model, match):
    with pytest.raises(ConfigError, match=match):
        build(**model)


def test_an_unknown_size_is_refused():
    with pytest.raises(ConfigError, match="T, S, B, L"):
        convnext.convnext_size("XL")
