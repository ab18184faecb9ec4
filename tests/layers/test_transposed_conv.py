import jax
import numpy as np
import pytest
import torch

from mim_jax.layers.transposed_conv import DoublingConv, dilated_convolution, interleaved_convolutions

FORMS = [dilated_convolution, interleaved_convolutions]


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    shapes = ((2, 3, 5, 4), (4, 4, 4, 6), (6,), (2, 6, 10, 6))  # x, kernel, bias, what the output is multiplied with
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.fixture(scope="module")
def reference(arrays):
    """PyTorch's output, and gradients with respect to input and kernel, in our axes."""
    x, kernel, bias, weights = (torch.from_numpy(array) for array in arrays)
    theirs = x.permute(0, 3, 1, 2), kernel.permute(2, 3, 0, 1), bias
    theirs = [value.clone().requires_grad_() for value in theirs]
    y = torch.nn.functional.conv_transpose2d(*theirs, stride=2, padding=1).permute(0, 2, 3, 1)
    (y * weights).sum().backward()
    x_grad, kernel_grad = theirs[0].grad.permute(0, 2, 3, 1), theirs[1].grad.permute(2, 3, 0, 1)
    return [value.detach().numpy() for value in (y, x_grad, kernel_grad)]


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_and_their_gradients_equal_pytorch(form, arrays, reference):
    x, kernel, bias, weights = arrays
    y, pullback = jax.vjp(form, x, kernel)
    for ours, theirs in zip((y + bias[None, None, None], *pullback(weights)), reference, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_layer_adds_its_bias(arrays, reference):
    x, kernel, bias, _ = arrays
    layer = DoublingConv(6, jax.nn.initializers.zeros)
    assert jax.tree.map(np.shape, layer.init(jax.random.key(0), x)["params"]) == {"kernel": kernel.shape, "bias": (6,)}
    y = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(y, reference[0], rtol=1e-5, atol=1e-5)
