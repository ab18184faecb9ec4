"""The transposed convolution that doubles a map, in the form that suits the machine."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.layers.compute import Compute
from mim_jax.layers.initializers import Initializer

_SIZE, _STRIDE = 4, 2


class DoublingConv(nn.Module):
    """PyTorch's ConvTranspose2d of size 4, stride 2 and padding 1; `kernel [4, 4, C, D]`, `bias [D]` from 0.

    Position (r, c) adds `x[r, c] @ kernel[i, j]` to position (2r - 1 + i, 2c - 1 + j) of the output.
    """

    features: int
    kernel_init: Initializer
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, 2H, 2W, features]`."""
        shape = (_SIZE, _SIZE, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        x, kernel, bias = (value.astype(self.compute.jax_dtype) for value in (x, kernel, bias))
        # XLA:CPU multiplies by the zeros of a dilated map, and takes about ten times as long for the gradients.
        double = interleaved_convolutions if jax.default_backend() == "cpu" else dilated_convolution
        return double(x, kernel) + bias[None, None, None]


def dilated_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The transposed convolution of `x [B, H, W, C]` with `kernel [4, 4, C, D]` as one operation."""
    return _convolve(x, kernel[::-1, ::-1], ((2, 2), (2, 2)), (_STRIDE, _STRIDE))


def interleaved_convolutions(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same as `dilated_convolution`, from four 2x2 convolutions: even and odd rows, even and odd columns."""
    batch, height, width, _ = x.shape
    # Even positions see the input before them (by tap 3) and their own (1); odd ones their own (2) and the next (0).
    taps = ((kernel[3::-2], (1, 0)), (kernel[2::-2], (0, 1)))
    rows = []
    for taps_of_row, row_padding in taps:
        columns = ((taps_of_row[:, 3::-2], (1, 0)), (taps_of_row[:, 2::-2], (0, 1)))
        maps = [_convolve(x, of_column, (row_padding, padding)) for of_column, padding in columns]
        rows.append(jnp.stack(maps, axis=3))
    return jnp.stack(rows, axis=2).reshape(batch, _STRIDE * height, _STRIDE * width, kernel.shape[-1])


def _convolve(
    x: jax.Array, kernel: jax.Array, padding: tuple[tuple[int, int], ...], dilation: tuple[int, int] = (1, 1)
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, lhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
