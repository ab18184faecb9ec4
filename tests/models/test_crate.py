import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.models import backbone, crate
from mim_jax.training.optimizer import Rates, layer_scales, make_optimizer
from mim_jax.training.sharding import make_mesh, tree_shardings

MODEL = dict(width=16, depth=3, heads=2, patch_size=8)
TINY = dict(method="crate_mae", image_size=(16, 32), model=MODEL)


def build(model=None, compute=None, **options):
    return crate.build(
        mim_jax.resolve({**TINY, "model": {**MODEL, **(model or {})}, "compute": compute or {}}), **options
    )


@pytest.fixture(scope="module")
def encoder():
    return build(mask_token=True)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(0), (2, 16, 32, 3))


@pytest.fixture(scope="module")
def variables(encoder, images):
    return jax.jit(encoder.init)(jax.random.key(1), images)


@pytest.fixture(scope="module")
def encode(encoder):
    return jax.jit(lambda v, images, hidden: encoder.apply(v, images, hidden=hidden, return_layers=True))


NOTHING = jnp.zeros((2, 8), bool)


def test_every_block_gives_non_negative_tokens_with_zeros(variables, images, encode):
    tokens, layers = encode(variables, images, NOTHING)
    assert tokens.shape == (2, 9, 16) and layers.shape == (3, 2, 9, 16)
    assert layers.min() == 0.0
    np.testing.assert_allclose((layers == 0).mean(axis=(1, 2, 3)), 0.5, atol=0.2)


def test_there_is_no_residual_around_the_sparsifying_step(encoder, variables, images):
    def set_to_zero(path, leaf):
        return jnp.zeros_like(leaf) if "ista" in str(path) else leaf

    def norm2(path, leaf):
        return jnp.zeros_like(leaf) if "norm2" in str(path) else leaf

    silent = jax.tree_util.tree_map_with_path(set_to_zero, jax.tree_util.tree_map_with_path(norm2, variables))
    _, layers = encoder.apply(silent, images, return_layers=True)
    assert not layers.any()


def test_hidden_patches_are_not_read_but_placed(variables, images, encode):
    hidden = jnp.asarray(np.tile([True, False, True, True], (2, 2)))
    mask = np.repeat(np.repeat(np.asarray(hidden).reshape(2, 2, 4), 8, axis=1), 8, axis=2)[..., None]
    other = jnp.where(mask, 5.0 - images, images)
    np.testing.assert_array_equal(encode(variables, images, hidden)[0], encode(variables, other, hidden)[0])
    assert not np.array_equal(encode(variables, images, NOTHING)[0], encode(variables, other, NOTHING)[0])
    # Where every patch is a mask token, only the positions, added afterwards, tell one from another.
    blind = np.asarray(encode(variables, images, ~NOTHING)[0][0, 1:])
    assert len({row.tobytes() for row in blind}) == 8


def test_without_a_mask_token_there_is_none(variables, images):
    plain = build()
    params = jax.eval_shape(plain.init, jax.random.key(0), images)["params"]
    assert set(variables["params"]) - set(params) == {"mask_token"}


def test_without_a_class_token_there_is_none(images):
    plain = build(dict(class_token=False))
    tokens, variables = jax.eval_shape(plain.init_with_output, jax.random.key(0), images)
    assert tokens.shape == (2, 8, 16) and "class_token" not in variables["params"]


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_features_are_the_patches_and_what_the_config_pools(pool):
    tokens = jax.random.normal(jax.random.key(0), (2, 9, 16)).astype(jnp.bfloat16)
    features = build(dict(pool=pool)).split(tokens)
    tokens = tokens.astype(jnp.float32)
    np.testing.assert_array_equal(features["tokens"], tokens[:, 1:])
    expected = tokens[:, 0] if pool == "class" else tokens[:, 1:].mean(axis=1)
    np.testing.assert_allclose(features["pooled"], expected, rtol=1e-6)


def test_scan_and_remat_change_nothing(encoder, variables, images):
    unrolled = build(compute=dict(scan=False, remat="full"), mask_token=True)

    def gradient(encoder):
        return jax.jit(jax.grad(lambda v: jnp.square(encoder.apply(v, images, hidden=NOTHING)[..., 0]).sum()))(
            variables
        )

    expected = jax.tree.leaves(gradient(encoder))  # on CPUs blocks are scanned
    largest = max(float(jnp.abs(leaf).max()) for leaf in expected)
    for one, other in zip(jax.tree.leaves(gradient(unrolled)), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * largest)


def test_drop_path_leaves_out_the_attention_of_whole_samples(variables, images):
    encoder = build(dict(drop_path=0.5, depth=2), mask_token=True)
    variables = {
        "params": {**variables["params"], "stack": jax.tree.map(lambda x: x[:2], variables["params"]["stack"])}
    }
    many = jnp.broadcast_to(images[:1], (12, *images.shape[1:]))
    out = jax.jit(lambda rng: encoder.apply(variables, many, deterministic=False, rngs={"drop_path": rng}))(
        jax.random.key(0)
    )
    assert len({row.tobytes() for row in np.asarray(out)}) == 2  # the first block drops nothing
    deterministic = np.asarray(jax.jit(encoder.apply)(variables, many))
    assert (deterministic == deterministic[:1]).all()


def test_layer_decay_counts_blocks(variables):
    scales = layer_scales({"encoder": variables["params"], "head": jnp.zeros(3)}, 0.5)
    for name in ("class_token", "mask_token"):
        assert float(scales["encoder"][name]) == 0.5**4
    kernel = scales["encoder"]["stack"]["blocks"]["ista"]["kernel"]
    assert kernel.ravel().tolist() == [0.5**3, 0.5**2, 0.5]
    assert float(scales["head"]) == float(scales["encoder"]["norm"]["scale"]) == 1.0


def test_subspaces_are_split_over_devices_as_their_heads_are():
    kernels = {"subspaces": (3, 64, 4, 16), "out": (3, 4, 16, 64)}
    attention = {name: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)} for name, shape in kernels.items()}
    shardings = tree_shardings({"attention": attention}, make_mesh(ConfigDict(dict(data=2, fsdp=2, tensor=2))))
    assert shardings["attention"]["subspaces"]["kernel"].spec == P(None, "fsdp", "tensor", None)
    assert shardings["attention"]["out"]["kernel"].spec == P(None, "tensor", None, "fsdp")


def test_muon_takes_all_subspaces_for_one_matrix():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))
    gradient = (rotation * np.linspace(0.2, 1.0, 16)).reshape(1, 16, 2, 8).astype(np.float32)
    tree = {"stack": {"blocks": {"attention": {"subspaces": {"kernel": jnp.asarray(gradient)}}}}}
    config = mim_jax.resolve({**TINY, "optimizer": dict(name="muon", weight_decay=0.0, no_decay=())})
    optimizer = make_optimizer(config, tree, Rates(jnp.float32, lambda step: jnp.zeros((), jnp.float32)))
    updates, _ = optimizer.update(tree, optimizer.init(tree), tree, step=jnp.int32(1))
    singular = np.linalg.svd(np.asarray(jax.tree.leaves(updates)[0]).reshape(16, 16), compute_uv=False)
    assert singular.max() / singular.min() < 2.0, singular  # 5 before; were heads rows of one matrix, 3


def test_the_backbone_of_a_config_is_found_by_its_name():
    assert type(backbone.build(mim_jax.resolve(TINY))) is crate.Crate


def test_a_classifier_has_a_norm_of_its_own_after_the_average():
    config = mim_jax.resolve(TINY)
    encoder, norm_follows = crate.build_supervised(config)
    assert norm_follows and not encoder.final_norm
    config.model.pool = "class"
    encoder, norm_follows = crate.build_supervised(config)
    assert encoder.final_norm and not norm_follows


def test_sizes_are_the_official_ones():
    assert crate.crate_size("S") == dict(width=576, depth=12, heads=12)
    with pytest.raises(ConfigError, match="no CRATE size 'H'; choose one of Ti, S, B, L"):
        crate.crate_size("H")


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (dict(heads=3), r"model\.width 16"),
        (dict(width=18), r"model\.width is 18"),
        (dict(depth=0), r"model\.depth is 0"),
        (dict(threshold=-0.1), r"model\.threshold is -0\.1"),
        (dict(pool="class", class_token=False), r"model\.pool is 'class'"),
        (dict(drop_path=1.0), r"model\.drop_path is 1\.0"),
        (dict(patch_size=5), "not divisible by model.patch_size"),
    ],
)
def test_bad_sizes_are_refused(model, match):
    with pytest.raises(ConfigError, match=match):
        build(model)


def test_images_of_another_size_are_refused(encoder, variables):
    with pytest.raises(ConfigError, match="Images of 32x16 were given"):
        encoder.apply(variables, jnp.zeros((1, 32, 16, 3)))
