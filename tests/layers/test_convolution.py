import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mim_jax.layers import convolution as module
from mim_jax.layers.convolution import convolution, max_pool

WINDOWS = [(1, 1), (1, 2), (2, 2), (3, 1), (3, 2), (4, 4), (7, 1), (7, 2)]  # size, stride


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def to_torch(x):
    return torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()


@pytest.mark.parametrize("sites_at_a_time", [1024, 48, 8])  # all rows, two, and one that has more sites than that
@pytest.mark.parametrize(("size", "stride"), WINDOWS)
def test_convolutions_and_their_gradients_equal_pytorchs(monkeypatch, size, stride, sites_at_a_time):
    monkeypatch.setattr(module, "_SITES_AT_A_TIME", sites_at_a_time)
    width = 28 if size == 7 else 12
    x, kernel = normal(0, 2, 8, width, 5), normal(1, size, size, 5, 6)
    peer_x, peer_kernel = to_torch(x), torch.from_numpy(kernel).permute(3, 2, 0, 1).requires_grad_()
    expected = F.conv2d(peer_x, peer_kernel, stride=stride, padding=size // 2 if size % 2 else 0)
    cotangent = normal(2, *expected.permute(0, 2, 3, 1).shape)
    expected.backward(torch.from_numpy(cotangent).permute(0, 3, 1, 2))

    @jax.jit
    def run(x, kernel, cotangent):
        y, gradient = jax.vjp(lambda x, kernel: convolution(x, kernel, stride), x, kernel)
        return y, *gradient(cotangent)

    y, x_gradient, kernel_gradient = run(x, kernel, cotangent)
    np.testing.assert_allclose(y, expected.detach().permute(0, 2, 3, 1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(x_gradient, peer_x.grad.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(kernel_gradient, peer_kernel.grad.permute(2, 3, 1, 0), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("side", [7, 8])
def test_other_machines_convolve_in_the_same_way(monkeypatch, side):
    x, kernel, depthwise = normal(0, 2, side, side, 4), normal(1, 3, 3, 4, 6), normal(2, 7, 7, 1, 4)

    def run():
        def loss(x, kernel, depthwise):
            y = convolution(convolution(x, depthwise), kernel, 2)
            return jnp.square(y).mean(), y

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(x, kernel, depthwise)

    ours = run()
    monkeypatch.setattr(module.jax, "default_backend", lambda: "gpu")
    jax.clear_caches()
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4), ours, run())


@pytest.mark.parametrize(("devices", "products"), [(1, 4), (2, 1)])
def test_a_batch_that_is_split_over_devices_has_one_sum_for_the_kernels_gradient(monkeypatch, devices, products):
    monkeypatch.setattr(module, "_SITES_AT_A_TIME", 48)
    x, kernel = normal(0, 2, 8, 12, 4), normal(1, 3, 3, 4, 4)
    mesh = jax.sharding.AbstractMesh((devices, 1), ("data", "fsdp"))
    with jax.sharding.use_abstract_mesh(mesh):
        jaxpr = jax.make_jaxpr(jax.grad(lambda kernel: convolution(x, kernel).sum()))(kernel)
    loops = [equation.params["length"] for equation in jaxpr.eqns if equation.primitive.name == "scan"]
    assert loops == ([] if products == 1 else [products])


def test_a_depthwise_convolution_equals_pytorchs():
    x, kernel = normal(0, 2, 6, 5, 4), normal(1, 7, 7, 1, 4)
    expected = F.conv2d(to_torch(x), torch.from_numpy(kernel).permute(3, 2, 0, 1), padding=3, groups=4)
    y = jax.jit(convolution)(x, kernel)
    np.testing.assert_allclose(y, expected.detach().permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)


def test_max_pooling_and_its_gradient_equal_pytorchs():
    x, cotangent = np.abs(normal(0, 2, 8, 12, 5)), normal(1, 2, 4, 6, 5)
    peer = to_torch(x)
    expected = F.max_pool2d(peer, 3, 2, 1)
    expected.backward(torch.from_numpy(cotangent).permute(0, 3, 1, 2))
    y, gradient = jax.vjp(lambda x: max_pool(x, 3, 2), x)
    np.testing.assert_array_equal(y, expected.detach().permute(0, 2, 3, 1))
    np.testing.assert_allclose(gradient(cotangent)[0], peer.grad.permute(0, 2, 3, 1), rtol=1e-6, atol=1e-6)
