import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.models.unet_decoder import UNetDecoder

WIDTHS = (16, 8, 4, 2)


@pytest.fixture(scope="module")
def decoder():
    return UNetDecoder(WIDTHS, channels=3)


@pytest.fixture(scope="module")
def maps():
    shapes = [(2, 2**i * 2, 2**i * 3, width) for i, width in enumerate(WIDTHS[:2])]
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


@pytest.fixture(scope="module")
def variables(decoder, maps):
    return decoder.init(jax.random.key(2), maps)


def test_every_block_doubles_the_map(decoder, variables, maps):
    images = decoder.apply(variables, maps)
    assert images.shape == (2, 16, 24, 3) and images.dtype == jnp.float32
    shapes = jax.tree.map(np.shape, variables["params"]["block2"])
    assert shapes["up"] == {"kernel": (4, 4, 8, 8), "bias": (8,)}
    assert [shapes[f"conv{n}"]["kernel"] for n in (1, 2)] == [(3, 3, 8, 8), (3, 3, 8, 4)]
    assert set(shapes["conv1"]) == {"kernel"}


def test_every_map_counts_and_later_ones_may_be_missing(decoder, variables, maps):
    full, alone = decoder.apply(variables, maps), decoder.apply(variables, maps[:1])
    assert not np.allclose(full, alone)
    np.testing.assert_allclose(decoder.apply(variables, [maps[0], 0.0 * maps[1]]), alone, rtol=1e-6)


def test_training_moves_the_running_statistics_of_all_norms(decoder, variables, maps):
    images, changed = decoder.apply(variables, maps, train=True, mutable=["batch_stats"])
    assert not np.allclose(images, decoder.apply(variables, maps))
    before, after = (jax.tree.leaves(tree["batch_stats"]) for tree in (variables, changed))
    assert len(after) == 2 * 2 * 3
    assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_width_that_cannot_be_halved_is_refused():
    config = mim_jax.default_config(method="spark")
    config.decoder.width = 48
    with pytest.raises(ConfigError, match=r"decoder\.width is 48.*multiple of 32"):
        mim_jax.create(config)
