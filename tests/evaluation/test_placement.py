import jax
import numpy as np

from mim_jax.evaluation.placement import Placement
from tests.evaluation.meshes import mesh_of


def test_padding_and_splitting_come_back_as_they_went():
    place = Placement(mesh_of(8))
    rows = np.arange(33.0, dtype=np.float32).reshape(11, 3)
    padded = place.pad(rows, place.multiple(len(rows)))
    split = place.split(padded)
    assert split.shape == (16, 3)
    assert split.addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(place.fetch(split)[:11], rows)
    np.testing.assert_array_equal(place.fetch(split)[11:], 0.0)


def test_replicated_arrays_are_whole_on_every_device():
    place = Placement(mesh_of(8))
    (array,) = jax.tree.leaves(place.replicate({"x": np.arange(5)}))
    assert array.sharding.is_fully_replicated
    assert len(array.addressable_shards) == 8
    np.testing.assert_array_equal(array.addressable_shards[7].data, np.arange(5))
