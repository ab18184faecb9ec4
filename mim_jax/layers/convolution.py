"""Convolutions and max pooling with the windows of PyTorch's usual networks, and the layer that has the kernel.

Windows of odd size are centred on a position and reach over the border, into zeros; those of even size do not overlap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.layers.compute import Compute
from mim_jax.layers.depthwise import depthwise_convolution, pad_maps
from mim_jax.layers.initializers import Initializer
from mim_jax.layers.placement import num_batch_shards

if TYPE_CHECKING:
    from mim_jax.layers.sites import Features, Sites

_SITES_AT_A_TIME = 1024  # in a kernel's gradient: the fastest for most layers of a ResNet-50 and of SparK's decoder


def window_padding(size: int) -> int:
    """Zeros beyond every border for windows of `size`."""
    return size // 2 if size % 2 else 0


def convolution(x: jax.Array, kernel: jax.Array, stride: int = 1, pad: bool = True) -> jax.Array:
    """Convolves `x [B, H, W, C]` with `kernel [k, k, C, D]`, or each channel by itself with `kernel [k, k, 1, C]`.

    The latter for odd k and stride 1. Without `pad` windows stay within the map, whatever k is. On CPUs it has no
    derivative in forward mode.
    """
    size = kernel.shape[0]
    padding = window_padding(size) if pad else 0
    if kernel.shape[2] < x.shape[-1]:
        return depthwise_convolution(x, kernel, padding)
    if padding == 0 and x.shape[1:3] == kernel.shape[:2]:
        return (x.reshape(x.shape[0], -1) @ kernel.reshape(-1, kernel.shape[-1]))[:, None, None]
    if size == 1:
        return at_every_site(lambda rows: rows @ kernel[0, 0], x[:, ::stride, ::stride])
    convolve = _cpu_convolution if jax.default_backend() == "cpu" else _convolution
    return convolve(x, kernel, stride, padding)


def max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    """The maximum of every window of `x [B, H, W, C]`, which is nowhere negative."""
    x = pad_maps(x, window_padding(size))
    # The gradient of the usual reduction over windows takes XLA:CPU eight times as long.
    return functools.reduce(jnp.maximum, (tap for row in _taps(x, size, stride) for tap in row))


def at_every_site(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`function` of `x [..., C]` as a list of rows, `[rows, C]` to `[rows, D]`: `[..., D]`.

    The gradient of a product with a kernel sums over one axis then; over several, XLA:CPU would swap axes first.
    """
    rows = function(x.reshape(-1, x.shape[-1]))
    return rows.reshape(*x.shape[:-1], rows.shape[-1])


def _convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((padding, padding),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cpu_convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """`_convolution` with gradients that are fast on CPUs.

    XLA:CPU has fast convolutions for maps and kernels in their usual order of axes. The gradients JAX derives have
    another: the kernel's takes nine times as long as the convolution where maps are large and channels few, and in a
    loop, such as that over the blocks of a stage, seventy times.
    """
    return _convolution(x, kernel, stride, padding)


def _cpu_convolution_gradient(
    stride: int, padding: int, inputs: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = inputs
    size = kernel.shape[0]
    before = size - 1 - padding
    after = [n + size - 2 - before - (m - 1) * stride for n, m in zip(x.shape[1:3], gradient.shape[1:3], strict=True)]
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    x_gradient = jax.lax.conv_general_dilated(
        gradient,
        flipped,
        (1, 1),
        [(before, last) for last in after],
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    padded = pad_maps(x, padding)
    if stride == 1 and gradient.shape[2] >= 4 * (size - 1):
        return x_gradient, _kernel_gradient_at_once(padded, gradient, size)
    return x_gradient, _kernel_gradient_by_rows(padded, gradient, size, stride)


_cpu_convolution.defvjp(
    lambda x, kernel, stride, padding: (_convolution(x, kernel, stride, padding), (x, kernel)),
    _cpu_convolution_gradient,
)


def _kernel_gradient_by_rows(x: jax.Array, gradient: jax.Array, size: int, stride: int) -> jax.Array:
    """The gradient `[k, k, C, D]` for a kernel of size k from the padded input, by one product for each of its rows."""
    rows = [jnp.concatenate(row, axis=-1) for row in _taps(x, size, stride)]
    width = gradient.shape[-1]
    gradient = gradient.reshape(-1, width)
    products = jnp.stack([row.reshape(-1, row.shape[-1]).T @ gradient for row in rows])
    return products.reshape(size, size, x.shape[-1], width)


def _kernel_gradient_at_once(x: jax.Array, gradient: jax.Array, size: int) -> jax.Array:
    """The same for stride 1, by one product for all of the kernel.

    Its rows are shifts of the input and its columns shifts of the gradient the other way, so that k maps on either side
    make k * k products; k - 1 columns of zeros take part, too many where maps are narrow. The shifted maps are made for
    some rows at a time, if possible so few that they stay in the processor's cache.
    """
    (batch, height, width, features), channels = gradient.shape, x.shape[-1]
    rows, sum_dtype = _rows_at_a_time(height, batch * width), jnp.promote_types(x.dtype, jnp.float32)

    def product(first: int | jax.Array) -> jax.Array:
        above = jax.lax.dynamic_slice_in_dim(x, first, rows + size - 1, axis=1)
        inputs = jnp.concatenate([above[:, i : i + rows] for i in range(size)], axis=-1)
        own = jax.lax.dynamic_slice_in_dim(gradient, first, rows, axis=1)
        shifted = [jnp.pad(own, ((0, 0), (0, 0), (j, size - 1 - j), (0, 0))) for j in range(size)]
        gradients = jnp.concatenate(shifted, axis=-1)
        inputs, gradients = (y.reshape(-1, y.shape[-1]) for y in (inputs, gradients))
        return jnp.matmul(inputs.T, gradients, preferred_element_type=sum_dtype)

    if rows == height:
        total = product(0)
    else:
        zeros = jnp.zeros((size * channels, size * features), sum_dtype)
        total = jax.lax.fori_loop(0, height // rows, lambda n, total: total + product(n * rows), zeros)
    return total.reshape(size, channels, size, features).swapaxes(1, 2).astype(x.dtype)


def _rows_at_a_time(height: int, row_sites: int) -> int:
    """The largest divisor of `height` whose rows, of `row_sites` sites, have at most `_SITES_AT_A_TIME`; or else 1.

    All rows where the batch is split over devices, since every part of the sum would wait for all of them.
    """
    if num_batch_shards() not in (None, 1):
        return height
    fitting = (rows for rows in range(1, height + 1) if height % rows == 0 and rows * row_sites <= _SITES_AT_A_TIME)
    return max(fitting, default=1)


def _taps(x: jax.Array, size: int, stride: int) -> list[list[jax.Array]]:
    """What the kernel's entry of each row and column meets of the padded `x`: a map of the output's size each."""
    batch, _, _, channels = x.shape
    height, width = ((n - size) // stride * stride + 1 for n in x.shape[1:3])
    return [
        [
            jax.lax.slice(x, (0, i, j, 0), (batch, i + height, j + width, channels), (1, stride, stride, 1))
            for j in range(size)
        ]
        for i in range(size)
    ]


class Conv(nn.Module):
    """A convolution as the rule for hidden sites does it; `kernel [k, k, C, D]` (depthwise `[k, k, 1, C]`), `bias`."""

    features: int
    kernel_init: Initializer
    size: int = 1
    stride: int = 1
    depthwise: bool = False  # of stride 1 only
    use_bias: bool = False
    bias_init: Initializer = nn.initializers.zeros_init()
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Features, sites: Sites) -> Features:
        """Maps features of C channels to `features` channels."""
        group = 1 if self.depthwise else sites.features(x).shape[-1]
        dtype = self.compute.jax_dtype
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, group, self.features), jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(dtype)
        return sites.convolve(x, kernel.astype(dtype), bias, self.stride)
