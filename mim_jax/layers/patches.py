"""Images to sequences of flattened patches and back, and the patch embedding."""

from __future__ import annotations

import jax
from flax import linen as nn

from mim_jax.errors import ConfigError
from mim_jax.layers.compute import Compute
from mim_jax.layers.dense import Dense
from mim_jax.layers.initializers import find_scheme


def as_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """`(height, width)` from one number or a pair."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def patch_grid(image_size: int | tuple[int, int], patch_size: int | tuple[int, int]) -> tuple[int, int]:
    """Number of patches `(rows, columns)`; raises ConfigError where the patch does not divide the image."""
    (height, width), (ph, pw) = as_pair(image_size), as_pair(patch_size)
    if min(ph, pw) < 1 or height % ph or width % pw:
        raise ConfigError(
            f"image_size {height}x{width} is not divisible by model.patch_size {ph}x{pw}; change one of the two."
        )
    return height // ph, width // pw


def patchify(images: jax.Array, patch_size: tuple[int, int]) -> jax.Array:
    """`[B, H, W, C]` to `[B, N, p*p*C]`: patches in raster order, each flattened (row, column, channel)."""
    batch, height, width, channels = images.shape
    ph, pw = patch_size
    rows, columns = height // ph, width // pw
    x = images.reshape(batch, rows, ph, columns, pw, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, ph * pw * channels)


def unpatchify(patches: jax.Array, patch_size: tuple[int, int], grid: tuple[int, int]) -> jax.Array:
    """The inverse of `patchify`: `[B, N, p*p*C]` to `[B, H, W, C]`."""
    batch, _, length = patches.shape
    (ph, pw), (rows, columns) = patch_size, grid
    channels = length // (ph * pw)
    x = patches.reshape(batch, rows, columns, ph, pw, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * ph, columns * pw, channels)


def regroup_patches(
    patches: jax.Array, patch_size: tuple[int, int], grid: tuple[int, int], other_size: tuple[int, int]
) -> jax.Array:
    """The pixels of patches `[B, N, p*p*C]` that tile `grid` as patches of another size, in raster order."""
    if patch_size == other_size:
        return patches
    return patchify(unpatchify(patches, patch_size, grid), other_size)


class PatchEmbed(nn.Module):
    """Linear embedding of flattened patches; the same map as a convolution of stride and size `p`.

    Taking patches, not images, lets an encoder embed the visible ones only.
    """

    width: int
    init_scheme: str = "xavier"
    compute: Compute = Compute()
    use_bias: bool = True

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        """Maps `[B, N, p*p*C]` to `[B, N, width]`."""
        scheme = find_scheme(self.init_scheme)
        return Dense(
            self.width,
            use_bias=self.use_bias,
            dtype=self.compute.jax_dtype,
            kernel_init=scheme.patch_kernel or scheme.kernel,
            bias_init=scheme.patch_bias(patches.shape[-1]),
            name="projection",
        )(patches)
