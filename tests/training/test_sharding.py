import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.training.sharding import check_batch_size, make_mesh, put_batch, tree_shardings


def mesh_of(data=-1, fsdp=1, tensor=1):
    return make_mesh(ConfigDict(dict(data=data, fsdp=fsdp, tensor=tensor)))


def test_the_free_axis_takes_the_rest():
    assert dict(mesh_of(fsdp=2).shape) == {"data": 4, "fsdp": 2, "tensor": 1}


@pytest.mark.parametrize("sizes", [dict(data=3), dict(data=-1, fsdp=3), dict(data=-1, fsdp=-1), dict(data=16)])
def test_meshes_that_do_not_tile_the_devices_are_refused(sizes):
    with pytest.raises(ConfigError, match="mesh.*8 devices"):
        mesh_of(**sizes)


def test_parameters_and_their_moments_follow_the_rules():
    mesh = mesh_of(data=1, fsdp=4, tensor=2)
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
    blocks = {
        "attention": {"qkv": {"kernel": leaf(12, 64, 3, 4, 16)}, "out": {"kernel": leaf(12, 4, 16, 64)}},
        "mlp": {"fc1": {"kernel": leaf(12, 64, 256)}, "fc2": {"kernel": leaf(12, 256, 64), "bias": leaf(12, 64)}},
    }
    tree = {"params": {"stack": {"blocks": blocks}}, "opt": {"mu": {"stack": {"blocks": blocks}}, "count": leaf()}}
    specs = jax.tree.map(lambda s: s.spec, tree_shardings(tree, mesh))
    for half in (specs["params"], specs["opt"]["mu"]):
        found = half["stack"]["blocks"]
        assert found["attention"]["qkv"]["kernel"] == P(None, "fsdp", None, "tensor", None)
        assert found["attention"]["out"]["kernel"] == P(None, "tensor", None, "fsdp")
        assert found["mlp"]["fc1"]["kernel"] == P(None, "fsdp", "tensor")
        assert found["mlp"]["fc2"]["kernel"] == P(None, "tensor", "fsdp")
        assert found["mlp"]["fc2"]["bias"] == P()
    assert specs["opt"]["count"] == P()


def test_dimensions_that_do_not_divide_stay_whole():
    mesh = mesh_of(data=1, fsdp=4, tensor=2)
    leaf = jax.ShapeDtypeStruct((2, 64, 3, 3, 22), np.float32)  # three heads over two devices
    assert tree_shardings({"attention": {"qkv": {"kernel": leaf}}}, mesh)["attention"]["qkv"]["kernel"].spec == P(
        None, "fsdp", None, None, None
    )


def test_unnamed_large_arrays_are_sharded_along_their_largest_dimension():
    leaf = jax.ShapeDtypeStruct((10, 4096), np.float32)
    assert tree_shardings({"queue": leaf}, mesh_of(fsdp=8, data=1))["queue"].spec == P(None, "fsdp")


def test_batches_are_split_over_data_and_fsdp():
    batch = put_batch({"image": np.arange(16.0)}, mesh_of(data=2, fsdp=2, tensor=2))
    shards = {tuple(s.data.tolist()) for s in batch["image"].addressable_shards}
    assert len(shards) == 4 and all(len(s) == 4 for s in shards)
    np.testing.assert_array_equal(batch["image"], np.arange(16.0))


def test_indivisible_batches_are_refused_by_name():
    mesh = mesh_of()
    check_batch_size(32, mesh, 4)
    with pytest.raises(ConfigError, match="batch_size 20"):
        check_batch_size(20, mesh)
    with pytest.raises(ConfigError, match="accumulation_steps 3"):
        check_batch_size(32, mesh, 3)
