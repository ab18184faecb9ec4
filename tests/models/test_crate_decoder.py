import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.layers.subspace_attention import SubspaceAttention
from mim_jax.models import crate, crate_decoder
from mim_jax.models.crate_decoder import CrateDecoderBlock

TINY = dict(method="crate_mae", image_size=16, model=dict(width=16, depth=2, heads=4, patch_size=4))


def build(decoder=None):
    config = mim_jax.resolve({**TINY, "decoder": decoder or {}})
    return crate_decoder.build(config, crate.build(config))


def normalised(x):
    """As a norm does that is not trained yet."""
    x = np.asarray(x)
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)


@pytest.fixture(scope="module")
def x():
    return 0.01 * jax.random.normal(jax.random.key(0), (2, 5, 12))  # so small that a norm's epsilon counts


@pytest.fixture(scope="module")
def params(x):
    params = CrateDecoderBlock(heads=3).init(jax.random.key(1), x)["params"]
    params["linear"]["kernel"] *= 0.01
    params["attention"]["out"]["bias"] = jnp.arange(12.0)
    return params


def test_first_linear_then_attention_is_taken_away(x, params):
    out, _ = CrateDecoderBlock(heads=3).apply({"params": params}, x)
    y = normalised(x) @ params["linear"]["kernel"]
    expected = y - SubspaceAttention(heads=3).apply({"params": params["attention"]}, normalised(y))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_without_subspaces_a_block_is_a_linear_map_of_the_normalised_tokens(x, params):
    silent = {**params, "attention": jax.tree.map(jnp.zeros_like, params["attention"])}
    out, _ = CrateDecoderBlock(heads=3).apply({"params": silent}, x)
    np.testing.assert_allclose(out, normalised(x) @ params["linear"]["kernel"], rtol=1e-4, atol=1e-6)


def test_sizes_are_the_encoders_unless_given():
    decoder = build()
    assert (decoder.depth, decoder.heads, decoder.output_dim) == (2, 4, 48)
    decoder = build(dict(depth=1, heads=2, width=16))
    assert (decoder.depth, decoder.heads) == (1, 2)


@pytest.mark.parametrize(
    ("decoder", "match"),
    [
        (dict(width=32), r"decoder\.width is 32.*model\.width, 16"),
        (dict(heads=3), r"decoder\.width 16 is not divisible by decoder\.heads 3"),
        (dict(depth=0), r"decoder\.depth is 0"),
    ],
)
def test_impossible_sizes_are_refused(decoder, match):
    with pytest.raises(ConfigError, match=match):
        build(decoder)
