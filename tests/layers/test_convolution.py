import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mim_jax.layers import convolution as module
from mim_jax.layers.convolution import convolution, max_pool

WINDOWS = [(1, 1), (1, 2), (2, 2), (3, 1), (3, 2), (4, 4), (7, 2)]  # of ResNets and ConvNeXts: size, stride


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def to_torch(x):
    return torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()


@pytest.mark.parametrize(("size", "stride"), WINDOWS)
def test_convolutions_and_their_gradients_equal_pytorchs(size, stride):
    x, kernel = normal(0, 2, 8, 12, 5), normal(1, size, size, 5, 6)
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
