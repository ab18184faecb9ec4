import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mim_jax.layers.placement import apply_to_own_rows, split_over_batch
from mim_jax.training.sharding import batch_sharding, make_mesh, on_mesh, replicated


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


def fourier(images):
    return apply_to_own_rows(lambda x: jnp.fft.fft2(x, axes=(1, 2)), images)


def test_own_rows_are_transformed_where_they_are():
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    images = jax.random.normal(jax.random.key(0), (8, 6, 4, 3))
    gradient = jax.grad(lambda x: jnp.abs(fourier(x)).sum())
    for function in (fourier, gradient):
        compiled = jax.jit(on_mesh(function, mesh), in_shardings=batch_sharding(mesh)).lower(images).compile()
        assert "fft(" in compiled.as_text() and "all-gather" not in compiled.as_text()
        split = compiled(jax.device_put(images, batch_sharding(mesh)))
        np.testing.assert_allclose(split, function(images), atol=1e-5)


def test_rows_that_cannot_be_split_are_transformed_all_the_same():
    mesh = mesh_of(data=4, tensor=2)
    images = jax.random.normal(jax.random.key(0), (3, 6, 4, 3))
    whole = jax.jit(on_mesh(fourier, mesh))(jax.device_put(images, replicated(mesh)))
    np.testing.assert_allclose(whole, fourier(images), atol=1e-5)
