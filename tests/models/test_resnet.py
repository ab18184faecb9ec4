import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.interop.cnn_blocks import resnet_encoder
from mim_jax.interop.layout import Context, flatten
from mim_jax.layers.compute import Compute
from mim_jax.models import backbone, resnet
from mim_jax.training.optimizer import layer_scales
from mim_jax.training.sharding import batch_sharding, make_mesh, on_mesh
from tests.models import cnn_peer
from tests.models.hlo import moved_arrays

MODEL = dict(depths=(2, 1, 2), widths=(4, 6, 8), stem_width=8)
PEER = dict(depths=[2, 1, 2], hidden_sizes=[16, 24, 32], embedding_size=8)
BATCH = 5  # no other axis of an activation is a multiple of five
CELLS = [[1, 0, 1, 0, 0, 1], [0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 1], [1, 0, 0, 1, 1, 0]]
ACTIVE = np.asarray(CELLS, bool).reshape(BATCH, 2, 3)  # of 16 pixels
CASES = {"intact": {}, "masked": dict(active=ACTIVE), "gathered": dict(active=ACTIVE, num_active=3)}


def config(compute=None, image_size=(32, 48), **model):
    full = ConfigDict(dict(image_size=224, channels=3, model=resnet.default_config(), compute=Compute.default_config()))
    with full.ignore_type():
        full.image_size = image_size
    full.model.update({**MODEL, **model})
    full.compute.update(compute or {})
    return full


def build(compute=None, **model):
    return resnet.build(config(compute, **model))


IMAGES = np.random.default_rng(0).normal(size=(BATCH, 32, 48, 3)).astype(np.float32)
COTANGENT = np.random.default_rng(1).normal(size=(BATCH, 2, 3, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    """The peer's weights."""
    empty = jax.eval_shape(build().init, jax.random.key(0), IMAGES)
    tensors = cnn_peer.officially("resnet", cnn_peer.make("resnet", **PEER).state_dict().items())
    return import_tensors(tensors, empty)


def import_tensors(tensors, like):
    context = Context(config=config(), shapes={}, structure=None)
    contract = {"params": {"encoder": like["params"]}}
    if "batch_stats" in like:
        contract["state"] = {"encoder": like["batch_stats"]}
    paths = set(flatten(contract))
    rules = [rule for rule in resnet_encoder("", "params/encoder", context) if rule.path in paths]
    filled = cnn_peer.fill(rules, tensors, contract)
    names = {"params": "params", "batch_stats": "state"}
    return {own: filled[name]["encoder"] for own, name in names.items() if name in filled}


@functools.cache
def step(case, compute=()):
    """The compiled gradient of a linear function of the last map, with all maps and new statistics, in training."""
    encoder = build(dict(compute))

    def loss(params, statistics, images):
        variables = {"params": params, "batch_stats": statistics}
        maps, changed = encoder.apply(
            variables, images, train=True, return_stages=True, mutable=["batch_stats"], **CASES[case]
        )
        return (maps[-1] * COTANGENT).sum(), (maps, changed["batch_stats"])

    shapes = jax.eval_shape(encoder.init, jax.random.key(0), IMAGES)
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    return gradient.lower(shapes["params"], shapes["batch_stats"], IMAGES).compile()


def run(case, variables, images=IMAGES, compute=()):
    gradient, (maps, statistics) = step(case, compute)(variables["params"], variables["batch_stats"], images)
    return gradient, maps, statistics


def close(ours, expected, tolerance=1e-5):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(float(np.abs(other).max()), 1e-6))


def peer_of(case):
    network = cnn_peer.make("resnet", **PEER).double()
    images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).double()
    if case != "intact":
        active = torch.from_numpy(ACTIVE)[:, None]
        network, images = cnn_peer.sparsify(network, active), cnn_peer.Sparse(active).hide(images)
    return network, images


@pytest.mark.parametrize("case", CASES)
def test_training_equals_pytorchs(case, variables):
    network, images = peer_of(case)
    network.train()
    expected = network(images, output_hidden_states=True).hidden_states[1:]
    (expected[-1] * torch.from_numpy(COTANGENT).permute(0, 3, 1, 2)).sum().backward()
    gradient, maps, statistics = run(case, variables)
    for ours, theirs in zip(maps, expected, strict=True):
        close(ours, theirs.detach().permute(0, 2, 3, 1).numpy())
    after = cnn_peer.officially("resnet", network.state_dict().items())
    close(statistics, import_tensors(after, variables)["batch_stats"])
    gradients = cnn_peer.officially("resnet", ((name, p.grad) for name, p in network.named_parameters()))
    close(gradient, import_tensors(gradients, {"params": variables["params"]})["params"], 2e-5)


@pytest.mark.parametrize("case", CASES)
def test_running_statistics_are_used_as_pytorch_uses_them(case, variables):
    network, images = peer_of(case)
    with torch.no_grad():
        expected = network(images).last_hidden_state
    tokens = jax.jit(lambda v: build().apply(v, IMAGES, **CASES[case]))(variables)
    close(tokens, expected.permute(0, 2, 3, 1).reshape(BATCH, 6, 32).numpy())


@pytest.mark.parametrize("case", ["masked", "gathered"])
def test_hidden_sites_are_empty_in_every_map_and_visible_ones_are_not(case, variables):
    for maps in run(case, variables)[1]:
        side = maps.shape[1] // 2
        seen = np.repeat(np.repeat(ACTIVE, side, axis=1), side, axis=2)
        np.testing.assert_array_equal((np.asarray(maps) != 0.0).any(axis=-1), seen)


@pytest.mark.parametrize("case", ["masked", "gathered"])
def test_hidden_pixels_have_no_influence(case, variables):
    seen = np.repeat(np.repeat(ACTIVE, 16, axis=1), 16, axis=2)[..., None]
    changed = np.where(seen, IMAGES, 1e3).astype(np.float32)
    jax.tree.map(np.testing.assert_array_equal, run(case, variables), run(case, variables, changed))


def test_with_every_cell_visible_it_is_the_intact_network(variables):
    everything = jnp.ones(ACTIVE.shape, bool)

    @jax.jit
    def maps(variables):
        apply = functools.partial(build().apply, variables, IMAGES, train=True, mutable=["batch_stats"])
        return [apply(active=everything), apply(active=everything, num_active=6)]

    _, expected, statistics = run("intact", variables)
    for tokens, changed in maps(variables):
        close(tokens.reshape(expected[-1].shape), expected[-1])
        close(changed["batch_stats"], statistics)


@pytest.mark.parametrize("shape", [(1, 2, 3), (BATCH, 6), (BATCH, 4, 6)])
def test_a_mask_of_another_grid_is_refused(shape, variables):
    with pytest.raises(ValueError, match=r"give \(5, 2, 3\)"):
        build().apply(variables, IMAGES, active=jnp.ones(shape, bool))


def test_unrolled_and_rematerialised_blocks_change_nothing(variables):
    compute = (("scan", False), ("remat", "full"))
    close(run("gathered", variables, compute=compute), run("gathered", variables), 2e-5)


def test_statistics_are_of_the_global_batch(variables):
    encoder = build(depths=(1,), widths=(4,), image_size=(16, 16))
    images = jax.random.normal(jax.random.key(0), (8, 16, 16, 3))
    active = jax.random.permutation(jax.random.key(1), jnp.arange(16) < 6).reshape(1, 4, 4)
    active = jnp.stack([jnp.roll(active[0], shift, 0) for shift in range(8)])
    initial = jax.jit(encoder.init)(jax.random.key(2), images)

    def loss(variables, images, active, num_active):
        tokens, changed = encoder.apply(
            variables, images, active=active, num_active=num_active, train=True, mutable=["batch_stats"]
        )
        return jnp.square(tokens[..., 0]).mean(), (tokens, changed)

    for num_active in (None, 6):
        gradient = functools.partial(jax.grad(loss, has_aux=True), num_active=num_active)
        mesh = make_mesh(ConfigDict(dict(data=8, fsdp=1, tensor=1)))
        split = jax.device_put((images, active), batch_sharding(mesh))
        close(jax.jit(on_mesh(gradient, mesh))(initial, *split), jax.jit(gradient)(initial, images, active))


@pytest.mark.parametrize("case", CASES)
def test_no_activation_is_ever_transposed(case):
    moved = [i for i in moved_arrays(step(case).as_text()) if any(n % BATCH == 0 for n in i.shape)]
    assert not moved, [(i.name, i.result) for i in moved]


def test_drop_path_drops_whole_samples_and_grows(variables):
    encoder = build(drop_path=0.9)
    many = jnp.broadcast_to(IMAGES[:1], (12, *IMAGES.shape[1:]))
    out = jax.jit(lambda rng: encoder.apply(variables, many, deterministic=False, rngs={"drop_path": rng}))
    assert len({row.tobytes() for row in np.asarray(out(jax.random.key(0)))}) > 3
    assert [[round(rate, 3) for rate in rates] for rates in encoder.drop_rates()] == [[0, 0.225], [0.45], [0.675, 0.9]]


def test_the_last_norm_of_every_branch_starts_at_zero():
    params = jax.jit(build().init)(jax.random.key(0), IMAGES)["params"]
    scales = {path: leaf for path, leaf in flatten(params).items() if path.endswith("/scale")}
    assert len(scales) == 1 + 3 * 4 + 2 * 3
    assert {float(jnp.abs(leaf).max()) for path, leaf in scales.items() if "norm3" in path} == {0.0}
    assert {float(leaf.min()) for path, leaf in scales.items() if "norm3" not in path} == {1.0}


@pytest.mark.parametrize(
    ("size", "count"), [("50", 23_508_032), ("101", 42_500_160), ("152", 58_143_808), ("200", 62_624_832)]
)
def test_standard_sizes_have_the_published_numbers_of_parameters(size, count):
    encoder = build(image_size=224, stem_width=64, **resnet.resnet_size(size))
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), images)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"])) == count
    assert encoder.patch_size == (32, 32) and encoder.grid == (7, 7) and encoder.width == 2048
    assert encoder.strides == (4, 8, 16, 32) and encoder.stage_widths == (256, 512, 1024, 2048)


def test_layer_decay_counts_as_sparks_fine_tuning(variables):
    counts = {"50": 6, "101": 12, "152": 13, "200": 17}
    standard = {size: build(image_size=224, **resnet.resnet_size(size)) for size in counts}
    assert {size: encoder.num_layers for size, encoder in standard.items()} == counts
    assert standard["50"].block_layers == [(1,) * 3, (2, 2, 3, 3), (4,) * 3 + (5,) * 3, (6,) * 3]
    encoder = build()  # stages 1, 2 and 3 are layers 1, 2 and 3
    scales = layer_scales({"encoder": variables["params"], "head": jnp.zeros(3)}, 0.5, encoder)
    assert float(scales["head"]) == 1.0
    scales = {path: np.unique(leaf).tolist() for path, leaf in flatten(scales["encoder"]).items()}
    for prefix, scale in {"stem_": 0.5**4, "stage1/": 0.5**3, "stage2/": 0.5**2, "stage3/": 0.5}.items():
        assert [s for path, s in scales.items() if path.startswith(prefix) and s != [scale]] == []


def test_the_small_stem_keeps_every_pixel():
    encoder = build(stem="small", image_size=28)
    assert encoder.strides == (1, 2, 4) and encoder.grid == (7, 7) and encoder.num_patches == 49
    maps = jax.eval_shape(
        lambda rng, x: encoder.init_with_output(rng, x, return_stages=True)[0],
        jax.random.key(0),
        jnp.zeros((1, 28, 28, 3)),
    )
    assert [m.shape for m in maps] == [(1, 28, 28, 16), (1, 14, 14, 24), (1, 7, 7, 32)]
    features = encoder.split(jnp.arange(98.0).reshape(1, 49, 2))
    np.testing.assert_allclose(features["pooled"], [[48.0, 49.0]])


def test_a_config_finds_it_by_its_name():
    assert type(backbone.build(config())) is resnet.ResNet
    encoder, norm_follows = backbone.build_supervised(config())
    assert type(encoder) is resnet.ResNet and not norm_follows


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (dict(stem="tiny"), r"model\.stem is 'tiny'"),
        (dict(stem_width=0), r"model\.stem_width"),
        (dict(depths=()), r"model\.depths"),
        (dict(depths=(2, 0, 2)), r"model\.depths"),
        (dict(widths=(4, 8)), r"model\.widths 2"),
        (dict(drop_path=1.0), r"model\.drop_path"),
        (dict(pool="class"), r"model\.pool"),
        (dict(sparse="packed"), r"model\.sparse"),
        (dict(image_size=40), r"image_size 40x40 is not divisible by 16"),
    ],
)
def test_bad_configs_are_refused(model, match):
    with pytest.raises(ConfigError, match=match):
        build(**model)


def test_an_unknown_size_is_refused():
    with pytest.raises(ConfigError, match="50, 101, 152, 200"):
        resnet.resnet_size("18")
