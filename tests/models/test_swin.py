import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.models import backbone, swin
from mim_jax.training.paths import leaf_names
from tests.models import swin_peer

IMAGE = (24, 32)


def build(model=None, compute=None, image_size=IMAGE, **options):
    model = {**swin_peer.MODEL, "window": 3, **(model or {})}
    config = dict(task="classification", image_size=image_size, model=model, compute=compute or {})
    return swin.build(mim_jax.resolve(config), **options)


@pytest.fixture(scope="module")
def encoder():
    return build(mask_token=True)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(0), (2, *IMAGE, 3))


@pytest.fixture(scope="module")
def hidden():
    return jax.random.bernoulli(jax.random.key(2), 0.5, (2, 12 * 16))


@pytest.fixture(scope="module")
def variables(encoder, images):
    return jax.jit(encoder.init)(jax.random.key(1), images)


def test_sizes_of_what_is_embedded_and_of_what_is_returned(encoder, variables, images):
    assert (encoder.embed_size, encoder.embed_grid) == ((2, 2), (12, 16))
    assert (encoder.patch_size, encoder.grid, encoder.width, encoder.num_patches) == ((4, 4), (6, 8), 16, 48)
    tokens, stages = jax.eval_shape(
        lambda v: (encoder.apply(v, images), encoder.apply(v, images, return_stages=True)), variables
    )
    assert tokens.shape == (2, 48, 16)
    assert [stage.shape for stage in stages] == [(2, 12, 16, 8), (2, 6, 8, 16)]


def test_images_that_tokens_do_not_tile_are_rounded_up():
    encoder = build(image_size=(26, 30))
    assert (encoder.embed_grid, encoder.grid) == ((13, 15), (7, 8))
    images = jnp.zeros((1, 26, 30, 3))
    shape = jax.eval_shape(lambda: encoder.init_with_output(jax.random.key(0), images)[0]).shape
    assert shape == (1, 56, 16)


def test_hidden_patches_do_not_reach_the_output(encoder, variables, images, hidden):
    pixels = jnp.repeat(jnp.repeat(hidden.reshape(2, 12, 16, 1), 2, axis=1), 2, axis=2)
    encode = jax.jit(lambda images: encoder.apply(variables, images, hidden=hidden))
    np.testing.assert_array_equal(encode(images), encode(jnp.where(pixels, 7.0, images)))
    assert np.abs(encode(images) - encode(jnp.where(pixels, images, 7.0))).max() > 1e-3


def test_the_mask_token_is_not_normalised(encoder, variables, images):
    """It takes the place of embeddings that have been."""
    everything = jnp.ones((2, 12 * 16), bool)
    twice = {"params": {**variables["params"], "mask_token": 1e3 * variables["params"]["mask_token"]}}
    maps = jax.jit(lambda v: encoder.apply(v, images, hidden=everything, return_stages=True)[0])
    assert np.abs(maps(twice)).max() > 100 * np.abs(maps(variables)).max()


def test_scan_and_remat_change_nothing(encoder, variables, images, hidden):
    def gradient(encoder):
        return jax.jit(jax.grad(lambda v: jnp.square(encoder.apply(v, images, hidden=hidden)[..., 0]).sum()))(variables)

    expected = jax.tree.leaves(gradient(encoder))  # on CPUs pairs are scanned
    unrolled = jax.tree.leaves(gradient(build(compute=dict(scan=False, remat="full"), mask_token=True)))
    largest = max(float(jnp.abs(leaf).max()) for leaf in expected)
    for one, other in zip(unrolled, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * largest)


def test_drop_path_grows_over_all_stages_and_is_off_when_deterministic(variables, images):
    encoder = build(dict(drop_path=0.9), mask_token=True)
    rates = []

    def record(function, args, kwargs, context):
        if isinstance(context.module, swin.SwinStage):
            rates.extend(context.module.drop_rates)
        return function(*args, **kwargs)

    many = jnp.broadcast_to(images[:1], (24, *images.shape[1:]))
    stages = jax.jit(
        lambda rng: encoder.apply(variables, many, deterministic=False, return_stages=True, rngs={"drop_path": rng})
    )
    with nn.intercept_methods(record):
        first, last = (np.asarray(stage) for stage in stages(jax.random.key(0)))
    np.testing.assert_allclose(rates, [0.0, 0.18, 0.36, 0.54, 0.72, 0.9], rtol=1e-6)
    # The first block drops nothing, so that only two branches of the first stage come and go.
    assert 2 <= len({image.tobytes() for image in first}) <= 4 < len({image.tobytes() for image in last})
    deterministic = np.asarray(jax.jit(encoder.apply)(variables, many))
    assert (deterministic == deterministic[:1]).all()


def test_initial_values(variables):
    params = variables["params"]
    block = params["stage2"]["stack"]["blocks"]["even"]
    for kernel in (
        block["mlp"]["fc1"]["kernel"],
        block["relative_bias"]["table"],
        params["stage1"]["merge"]["reduction"]["kernel"],
    ):
        assert np.std(kernel) == pytest.approx(0.02, rel=0.1)
    bound = 12**-0.5  # of a convolution as PyTorch initialises it
    embedding = params["patch_embed"]["projection"]
    assert 0.9 * bound < np.abs(embedding["kernel"]).max() <= bound and 0 < np.abs(embedding["bias"]).max() <= bound
    assert not np.asarray(block["attention"]["qkv"]["bias"]).any()


def test_every_pair_has_its_own_tables(variables):
    blocks = variables["params"]["stage2"]["stack"]["blocks"]
    assert {parity: tree["relative_bias"]["table"].shape for parity, tree in blocks.items()} == {
        "even": (2, 25, 4),
        "odd": (2, 25, 4),
    }
    names = leaf_names(variables["params"])
    assert all("stack/blocks/" in name for name in names if "attention/" in name)


@pytest.mark.parametrize(
    ("size", "count"), [("T", 27_519_354), ("S", 48_837_258), ("B", 86_743_224), ("L", 194_995_476)]
)
def test_standard_sizes(size, count):
    """Of encoders at 224 pixels without mask token, as transformers counts them."""
    encoder = build({"patch_size": 4, "window": 7, **swin.swin_size(size)}, image_size=224)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    assert (encoder.patch_size, encoder.grid) == ((32, 32), (7, 7))


def test_the_backbone_of_a_config_is_found_by_its_name():
    config = mim_jax.default_config(method="simmim", backbone="swin")
    assert type(backbone.build(config)) is swin.Swin


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (dict(depths=(2, 3)), r"model\.depths is \(2, 3\)"),
        (dict(depths=()), r"model\.depths"),
        (dict(heads=(2,)), r"model\.heads has 1 numbers"),
        (dict(heads=(2, 3)), r"model\.width 16 is not divisible by model\.heads 3"),
        (dict(window=0), r"model\.window"),
        (dict(pool="class"), r"model\.pool"),
        (dict(drop_path=1.0), r"model\.drop_path"),
        (dict(patch_size=5), r"model\.patch_size 5x5"),
    ],
)
def test_bad_sizes_are_refused(model, match):
    with pytest.raises(ConfigError, match=match):
        build(model)


def test_an_unknown_size_is_refused():
    with pytest.raises(ConfigError, match="no Swin size 'H'"):
        swin.swin_size("H")
