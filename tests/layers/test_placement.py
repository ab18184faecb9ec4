import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.layers.placement import split_over_batch
from mim_jax.training.sharding import make_mesh, on_mesh, replicated


def arrays(mesh):
    return jax.device_put([jnp.ones((3, 4)), jnp.ones((8, 4)), jnp.ones(())], replicated(mesh))


def mesh_of(**sizes):
    return make_mesh(ConfigDict({"data": 1, "fsdp": 1, "tensor": 1, **sizes}))


def test_rows_are_split_and_what_cannot_be_split_is_left_alone():
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    odd, even, scalar = jax.jit(on_mesh(split_over_batch, mesh))(arrays(mesh))
    assert odd.sharding.is_fully_replicated and scalar.sharding.is_fully_replicated
    assert even.sharding.shard_shape(even.shape) == (2, 4)


def test_without_a_mesh_nothing_happens():
    assert all(x.sharding.is_fully_replicated for x in jax.jit(split_over_batch)(arrays(mesh_of(data=8))))


def test_gradients_are_split_like_what_they_are_gradients_of():
    mesh = mesh_of(data=4, fsdp=2)
    gradient = jax.grad(lambda x: jnp.square(split_over_batch(x)).sum())
    x = jax.device_put(jnp.ones((8, 4)), replicated(mesh))
    assert jax.jit(on_mesh(gradient, mesh))(x).sharding.shard_shape((8, 4)) == (1, 4)
