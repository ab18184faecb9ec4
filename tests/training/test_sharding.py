import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.planning.compilation import bytes_per_device, total_bytes
from mim_jax.training.program import Program
from mim_jax.training.sharding import check_batch_size, make_mesh, on_mesh, put_batch, tree_shardings
from tests.tiny import ROOT


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
        "cross_attention": {
            "key": {"kernel": leaf(12, 32, 4, 16), "bias": leaf(12, 4, 16)},
            "out": {"kernel": leaf(12, 4, 16, 64)},
        },
        "mlp": {"fc1": {"kernel": leaf(12, 64, 256)}, "fc2": {"kernel": leaf(12, 256, 64), "bias": leaf(12, 64)}},
    }
    tree = {"params": {"stack": {"blocks": blocks}}, "opt": {"mu": {"stack": {"blocks": blocks}}, "count": leaf()}}
    specs = jax.tree.map(lambda s: s.spec, tree_shardings(tree, mesh))
    for half in (specs["params"], specs["opt"]["mu"]):
        found = half["stack"]["blocks"]
        assert found["attention"]["qkv"]["kernel"] == P(None, "fsdp", None, "tensor", None)
        assert found["attention"]["out"]["kernel"] == P(None, "tensor", None, "fsdp")
        assert found["cross_attention"]["key"]["kernel"] == P(None, "fsdp", "tensor", None)
        assert found["cross_attention"]["key"]["bias"] == P(None, "tensor", None)
        assert found["cross_attention"]["out"]["kernel"] == P(None, "tensor", None, "fsdp")
        assert found["mlp"]["fc1"]["kernel"] == P(None, "fsdp", "tensor")
        assert found["mlp"]["fc2"]["kernel"] == P(None, "tensor", "fsdp")
        assert found["mlp"]["fc2"]["bias"] == P()
    assert specs["opt"]["count"] == P()


def huge_state(**sizes):
    config = mim_jax.load_config(str(ROOT / "configs" / "mae_vit_h14_in1k.py"))
    return Program(config, mesh_of(**sizes), 1_281_167).abstract_state


@pytest.mark.parametrize("sizes", [dict(fsdp=8), dict(fsdp=4, tensor=2)])
def test_each_of_eight_devices_holds_an_eighth_of_a_huge_model(sizes):
    state = huge_state(data=1, **sizes)
    eighth = total_bytes(state) / 8
    assert eighth <= bytes_per_device(state) < 1.01 * eighth
    large = [x for x in jax.tree.leaves(state) if math.prod(x.shape) > 2**20]
    assert all(math.prod(x.sharding.shard_shape(x.shape)) <= math.prod(x.shape) / 4 for x in large)


def test_tensor_parallel_devices_share_everything_between_the_layers_of_a_block():
    state = huge_state(data=1, tensor=8)
    encoder, decoder, patch = 1280, 512, 14 * 14 * 3
    # Of each block: two norms and the biases of the two layers that end in an all-reduce. Around the blocks: patch
    # embedding and decoder embedding with their biases, prediction, final norms, class and mask token.
    whole = 32 * 6 * encoder + 8 * 6 * decoder
    whole += (patch + 1) * encoder + (encoder + 1) * decoder + (decoder + 1) * patch
    whole += 2 * encoder + 2 * decoder + encoder + decoder
    copies_and_scalars = 3 * 4 * whole + 5 * 4  # parameters and two moments; step, counters, Adam's count
    expected = copies_and_scalars + (total_bytes(state) - copies_and_scalars) / 8
    assert bytes_per_device(state) == expected < 1.03 * total_bytes(state) / 8


def test_gradient_moments_have_the_sharding_of_their_parameters():
    state = huge_state(data=1, fsdp=4, tensor=2)
    params = jax.tree.map(lambda x: x.sharding.spec, state.variables["params"])
    moments = [x for x in state.opt_state if hasattr(x, "mu")]
    assert len(moments) == 1
    for moment in (moments[0].mu, moments[0].nu):
        assert jax.tree.map(lambda x: x.sharding.spec, moment) == params


def test_small_biases_go_with_the_product_they_are_added_to():
    leaf = jax.ShapeDtypeStruct((2, 256), np.float32)
    assert tree_shardings({"mlp": {"fc1": {"bias": leaf}}}, mesh_of(data=1, tensor=8))["mlp"]["fc1"]["bias"].spec == P(
        None, "tensor"
    )


def test_functions_on_a_mesh_see_it_and_others_do_not():
    mesh = mesh_of(data=4, fsdp=2)
    seen = []
    jax.jit(on_mesh(lambda x: seen.append(jax.sharding.get_abstract_mesh().shape) or x, mesh)).lower(1.0)
    assert dict(seen[0]) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert jax.sharding.get_abstract_mesh().empty


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
