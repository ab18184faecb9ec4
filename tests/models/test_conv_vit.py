import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.models import backbone, conv_vit
from mim_jax.training.optimizer import layer_scales

MODEL = dict(
    width=16, depth=3, heads=2, patch_size=8, stages=dict(widths=(8, 12), depths=(2, 1), mlp_ratios=(2.0, 2.0))
)
TINY = dict(method="convmae", image_size=(16, 32), decoder=dict(width=8, depth=1, heads=2), model=MODEL)


def build(model=None, **options):
    config = mim_jax.resolve({**TINY, "model": {**MODEL, **(model or {})}})
    return conv_vit.build(config, **options)


@pytest.fixture(scope="module")
def encoder():
    return build()


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(0), (2, 16, 32, 3))


@pytest.fixture(scope="module")
def variables(encoder, images):
    return jax.jit(encoder.init)(jax.random.key(1), images)


@pytest.fixture(scope="module")
def ids():
    order = jax.random.permutation(jax.random.key(2), 8)
    return jnp.stack([order[:3], order[3:6]]).astype(jnp.int32)


@pytest.fixture(scope="module")
def encode(encoder):
    return jax.jit(lambda variables, images, ids: encoder.apply(variables, images, ids_keep=ids))


def test_with_nothing_hidden_the_mask_changes_nothing(encoder, variables, images, encode):
    ids = jnp.broadcast_to(jnp.arange(8, dtype=jnp.int32)[None], (2, 8))
    np.testing.assert_allclose(
        encode(variables, images, ids), jax.jit(encoder.apply)(variables, images), rtol=1e-5, atol=1e-6
    )


def test_views_of_an_image_are_encoded_like_copies_of_it(variables, images, ids, encode):
    views = jnp.stack([ids, ids[::-1]], axis=1).reshape(4, 3)  # both views of an image side by side
    together = encode(variables, images, views)
    apart = encode(variables, jnp.repeat(images, 2, axis=0), views)
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-6)


def test_the_order_of_the_kept_patches_is_that_of_the_tokens(variables, images, ids, encode):
    order = np.asarray([2, 0, 1])
    np.testing.assert_allclose(
        encode(variables, images, ids[:, order]), encode(variables, images, ids)[:, order], rtol=1e-4, atol=1e-5
    )


def test_without_fusion_the_side_outputs_are_not_there(encoder, variables, images):
    plain = build(fusion=False)
    alone = jax.jit(plain.init)(jax.random.key(1), images)
    assert set(variables["params"]["stem"]) - set(alone["params"]["stem"]) == {"fuse1", "fuse2"}
    silent = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if "fuse" in str(path) else leaf, variables
    )
    np.testing.assert_array_equal(
        jax.jit(encoder.apply)(silent, images), jax.jit(lambda v: plain.apply(v, images))(variables)
    )


def test_scan_and_remat_change_nothing(variables, images, ids, encoder):
    unrolled = conv_vit.build(mim_jax.resolve({**TINY, "compute": dict(scan=False, remat="full")}))

    def gradient(encoder):
        return jax.jit(jax.grad(lambda v: jnp.square(encoder.apply(v, images, ids_keep=ids)[..., 0]).sum()))(variables)

    expected = jax.tree.leaves(gradient(encoder))  # on CPUs blocks are scanned
    largest = max(float(jnp.abs(leaf).max()) for leaf in expected)
    for one, other in zip(jax.tree.leaves(gradient(unrolled)), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * largest)


def test_drop_path_grows_over_all_stages(variables, images):
    encoder = build(dict(drop_path=0.9))
    many = jnp.broadcast_to(images[:1], (12, *images.shape[1:]))
    out = jax.jit(lambda rng: encoder.apply(variables, many, deterministic=False, rngs={"drop_path": rng}))
    assert len({row.tobytes() for row in np.asarray(out(jax.random.key(0)))}) > 6
    deterministic = np.asarray(jax.jit(encoder.apply)(variables, many))
    assert (deterministic == deterministic[:1]).all()


def test_layer_decay_counts_the_convolutional_stages_as_embedding(variables):
    scales = layer_scales({"encoder": variables["params"], "head": jnp.zeros(3)}, 0.5)
    assert {float(s) for s in jax.tree.leaves(scales["encoder"]["stem"])} == {0.5**4}
    kernel = scales["encoder"]["stack"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.ravel().tolist() == [0.5**3, 0.5**2, 0.5]
    assert float(scales["head"]) == float(scales["encoder"]["norm"]["scale"]) == 1.0


@pytest.mark.parametrize(("size", "count"), [("S", None), ("B", 88_932_736 - 196 * 768), ("L", None)])
def test_standard_sizes(size, count):
    config = mim_jax.default_config(method="convmae")
    config.model.update(conv_vit.conv_vit_size(size))
    encoder = conv_vit.build(config)
    variables = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    widths = conv_vit.conv_vit_size(size)["stages"]["widths"]
    assert variables["params"]["stem"]["embed2"]["norm"]["scale"].shape == widths[1:]
    assert count in (None, sum(leaf.size for leaf in jax.tree.leaves(variables["params"])))


def test_an_unknown_size_is_refused():
    with pytest.raises(ConfigError, match="'H'; choose one of S, B, L"):
        conv_vit.conv_vit_size("H")


def test_the_backbone_of_a_config_is_found_by_its_name():
    config = mim_jax.resolve(TINY)
    assert type(backbone.build(config)) is conv_vit.ConvViT
    config.model.update(backbone="vit", class_token=True)
    assert type(backbone.build(config)).__name__ == "ViT"


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (dict(class_token=True), r"model\.class_token"),
        (dict(relative_bias=True), r"model\.relative_bias"),
        (dict(patch_size=2), r"model\.patch_size is 2x2"),
        (dict(heads=3), r"model\.width 16"),
        (dict(stages=dict(widths=(8, 12, 16))), r"model\.stages\.widths"),
        (dict(stages=dict(depths=(0, 2))), r"model\.stages\.depths"),
    ],
)
def test_bad_sizes_are_refused(model, match):
    with pytest.raises(ConfigError, match=match):
        build(model)
