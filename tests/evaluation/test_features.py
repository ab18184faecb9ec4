import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mim_jax.contract import Objective
from mim_jax.errors import ConfigError, DataError
from mim_jax.evaluation.features import FeatureExtractor, FeatureSet, select_feature
from tests.evaluation.meshes import mesh_of


class PixelStatistics(Objective):
    """An encoder whose features can be checked by hand: two tokens, the pixels of the upper and the lower row."""

    def encode(self, variables, images):
        rows = images[..., 0] * variables["params"]["gain"]
        return {"tokens": rows, "pooled": rows[:, 0]}


def split(size: int):
    """`size` images of 2 x 3 pixels, image i full of i above and of -i below, labelled i + 100."""
    index = np.arange(size, dtype=np.int64)
    images = np.stack([index, -index], axis=1)[:, :, None, None] * np.ones((1, 1, 3, 1))
    return {"image": images.astype(np.float32), "label": (index + 100).astype(np.int32), "index": index}


def batches(size: int, batch_size: int, order=None, labelled=True):
    """The split in padded batches; padding is far from zero, so that counting it would show."""
    rows = split(size)
    rows["valid"] = np.ones(size, bool)
    if not labelled:
        rows.pop("label")
    order = np.arange(size) if order is None else order
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        missing = batch_size - len(chosen)
        padding = {"image": 1e6, "label": 0, "index": -1, "valid": False}
        yield {
            key: np.concatenate([value[chosen], np.full((missing, *value.shape[1:]), padding[key], value.dtype)])
            for key, value in rows.items()
        }


def variables(gain: float = 1.0):
    return {"params": {"gain": jnp.float32(gain)}}


@pytest.fixture(scope="module")
def extractor():
    return FeatureExtractor(PixelStatistics(ConfigDict()), mesh_of(8))


@pytest.mark.parametrize("size", [37, 48, 5])
def test_every_example_counts_once_and_padding_never(extractor, size):
    found = extractor(variables(), batches(size, 16))
    np.testing.assert_array_equal(found.indices, np.arange(size))
    np.testing.assert_array_equal(found.features, np.arange(size)[:, None] * np.ones((1, 3)))
    np.testing.assert_array_equal(found.labels, np.arange(size) + 100)
    assert found.features.dtype == np.float32


def test_examples_come_back_in_the_order_of_the_split(extractor):
    found = extractor(variables(), batches(37, 16, order=np.random.default_rng(0).permutation(37)))
    np.testing.assert_array_equal(found.features[:, 0], np.arange(37))


def test_unlabelled_data(extractor):
    assert extractor(variables(), batches(20, 16, labelled=False)).labels is None


def test_new_variables_compile_nothing(extractor):
    extractor(variables(1.0), batches(37, 16))
    compiled = extractor._encode._cache_size()
    found = extractor(variables(3.0), batches(37, 16))
    assert extractor._encode._cache_size() == compiled
    np.testing.assert_array_equal(found.features[:, 0], 3.0 * np.arange(37))


def test_transfers_are_explicit(extractor):
    replicated = extractor.place.replicate({"params": {"gain": np.float32(2.0)}})
    with jax.transfer_guard("disallow"):
        assert len(extractor(replicated, batches(37, 16))) == 37


def test_mean_over_tokens(extractor):
    found = extractor(variables(), batches(10, 16), "tokens_mean")
    np.testing.assert_array_equal(found.features, np.zeros((10, 3)))


def test_progress_counts_examples_not_padding(extractor):
    seen = []
    extractor(variables(), batches(37, 16), advance=seen.append)
    assert seen == [16, 16, 5]


def test_an_example_that_comes_twice_is_an_error(extractor):
    with pytest.raises(DataError, match="twice"):
        extractor(variables(), batches(20, 16, order=np.array([0, 1, 2, 1])))


def test_no_example_at_all_is_an_error(extractor):
    empty = next(batches(3, 16))
    empty["valid"][:] = False
    with pytest.raises(DataError, match="no readable example"):
        extractor(variables(), [empty])


def test_unknown_feature_names_the_known_ones():
    encoded = {"tokens": jnp.zeros((2, 3, 4)), "pooled": jnp.zeros((2, 4))}
    with pytest.raises(ConfigError, match="tokens_mean, pooled"):
        select_feature(encoded, "tokens")


def test_take_skips_what_was_unreadable():
    whole = FeatureSet(np.arange(6.0).reshape(3, 2), np.array([7, 8, 9]), np.array([0, 2, 5]))
    part = whole.take(np.array([2, 3, 5]))
    np.testing.assert_array_equal(part.indices, [2, 5])
    np.testing.assert_array_equal(part.labels, [8, 9])
    np.testing.assert_array_equal(part.features, [[2.0, 3.0], [4.0, 5.0]])
