import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mim_jax.training.integrity import tree_checksums


def checksum(x):
    return tree_checksums({"x": jnp.asarray(x)})["x"]


def test_every_flipped_bit_is_noticed():
    x = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    reference = checksum(x)
    for flat in (0, 17, 34):
        for bit in range(32):
            damaged = x.copy().view(np.uint32)
            damaged.ravel()[flat] ^= np.uint32(1 << bit)
            assert checksum(damaged.view(np.float32)) != reference


def test_swapped_values_are_noticed():
    x = np.arange(6, dtype=np.float32)
    assert checksum(x) != checksum(x[[1, 0, 2, 3, 4, 5]])


def test_all_dtypes_of_a_state_have_one():
    tree = {d: jnp.ones((3,), d) for d in ("float32", "bfloat16", "int32", "uint32", "bool", "uint8")}
    assert set(tree_checksums(tree)) == set(tree)


def test_sharding_does_not_matter():
    x = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharded = jax.device_put(x, NamedSharding(mesh, P("a", "b")))
    assert tree_checksums({"x": sharded}) == tree_checksums({"x": jnp.asarray(x)})
