import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.interop import import_with_report
from mim_jax.models import tokenizers
from mim_jax.normalization import IMAGENET
from mim_jax.train import train
from mim_jax.training.teachers import load_teachers
from tests.models import dvae_peer
from tests.tiny import tiny_config

SIZES = dict(width=32, groups=3, depth=2, num_codes=24)  # 4x4 pixels a token, 8 channels at first
GRID = (3, 5)


def make(**changes):
    section = tokenizers.default_config()
    section.update(SIZES, weights="random", **changes)
    return tokenizers.build(section, mim_jax.default_config(method="mae"), GRID)


@pytest.fixture(scope="module")
def state():
    return dvae_peer.make_state("encoder", 8, 3, 2, 24, 3)


@pytest.fixture(scope="module")
def params(state):
    tokenizer = make()
    variables, report = import_with_report(tokenizer.objective, state, tokenizer.layout, strict=True)
    assert not report.random
    return tokenizer.take(variables)


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(1))


def normalised(pixels):
    mean, std = (np.asarray(values, np.float32) for values in IMAGENET)
    return (np.asarray(pixels).transpose(0, 2, 3, 1) - mean) / std


def test_tokens_are_pytorchs(state, params, pixels):
    logits = dvae_peer.encode(state, pixels, 3, 2)
    first, second = logits.topk(2, dim=1).values.unbind(1)
    assert (first - second).min() > 1e-3  # nothing here hangs on rounding
    ids = jax.jit(make().__call__)(params, normalised(pixels))
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, logits.argmax(1).flatten(1).numpy())
    assert len(np.unique(ids)) > 2


def test_dalles_encoder_has_its_size():
    section = tokenizers.default_config()
    tokenizer = tokenizers.build(section, mim_jax.default_config(method="mae"), (14, 14))
    assert tuple(tokenizer.objective.config.image_size) == (112, 112) and tokenizer.num_codes == 8192
    params = jax.eval_shape(tokenizer.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 53_786_240
    image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    assert jax.eval_shape(tokenizer, params, image).shape == (2, 196)


def test_larger_images_are_resized_as_pillow_does():
    large = np.random.default_rng(0).random((2, 3, 24, 40)).astype(np.float32)
    ours = make().pixels(jnp.asarray(normalised(large)))
    planes = [[Image.fromarray(plane).resize((20, 12), Image.Resampling.LANCZOS) for plane in image] for image in large]
    theirs = np.clip(np.array([[np.asarray(plane) for plane in image] for image in planes]), 0, 1)
    np.testing.assert_allclose(ours, theirs.transpose(0, 2, 3, 1), atol=1e-4)


def test_no_gradient_reaches_images_or_weights(params, pixels):
    tokenizer, images = make(), jnp.asarray(normalised(pixels))
    seen = jax.jit(jax.grad(lambda images: tokenizer.pixels(images).sum()))(images)
    assert not np.any(seen)


def test_weights_of_a_run_are_its_encoders(tmp_path):
    """A file is read by `test_tokens_are_pytorchs`; the run here is one of the shrunk Fashion-MNIST config."""
    run = tiny_config("dvae", {"duration": "1 steps", "schedule.warmup": "1 steps", "checkpoint.every": "1 steps"})
    state = train(run, tmp_path / "run")
    config = tiny_config("cae", {"tokenizer.weights": str(tmp_path / "run")})
    objective = mim_jax.create(config)
    fresh = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())
    loaded = load_teachers(objective, fresh)["teacher"]["tokenizer"]
    jax.tree.map(np.testing.assert_array_equal, loaded, state.variables["params"]["encoder"])
    # It names the images' tokens as the run itself does.
    image = jax.random.normal(jax.random.key(1), (2, 28, 28, 1), jnp.float32)
    theirs = mim_jax.create(run).encode(state.variables, image)["token_ids"]
    np.testing.assert_array_equal(objective.tokenizer(loaded, image), theirs)
    other = mim_jax.create(tiny_config("cae", {"tokenizer.weights": str(tmp_path / "run"), "tokenizer.num_codes": 64}))
    with pytest.raises(ConfigError, match="set the sizes under tokenizer to the run's"):
        load_teachers(other, fresh)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(groups=0), r"tokenizer\.groups is 0"),
        (dict(width=30), r"tokenizer\.width is 30"),
        (dict(width=8), r"tokenizer\.width is 8"),
        (dict(num_codes=0), r"tokenizer\.num_codes is 0"),
    ],
)
def test_impossible_sizes_are_refused(changes, match):
    section = tokenizers.default_config()
    section.update({**SIZES, **changes})
    with pytest.raises(ConfigError, match=match):
        tokenizers.build(section, mim_jax.default_config(method="mae"), GRID)
