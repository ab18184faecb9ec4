"""Masks from filtered ("coloured") noise (Hinojosa et al. 2024, ColorMAE, section 3; arXiv 2407.13036).

The noise lives on the patch grid. Of white noise W and its Gaussian blurs G_s * W (s in patches) it is

- red, `G_s * W`: large blobs;
- blue, `W - G_s * W`: evenly spread;
- green, `G_s1 * W - G_s2 * W` with s1 < s2: clusters of medium size;
- purple, `W - green`: what green leaves out.
"""

from __future__ import annotations

import functools
import zipfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.errors import ConfigError, DataError
from mim_jax.masking.token_mask import TokenMask

COLORS = ("white", "red", "green", "blue", "purple")


def color_noise(
    rng: jax.Array,
    batch: int,
    grid: tuple[int, int],
    color: str,
    *,
    sigma: float,
    band: tuple[float, float],
    field: int,
) -> jax.Array:
    """Gaussian noise of a colour on windows `[batch, *grid]`, float32, drawn anew for every image.

    Each window is cut from a periodic field of `field` x `field` patches of its own, large enough that the window does
    not notice the period. The blur is a Gaussian in frequency, `gaussian_response`; a sampled kernel, such as SciPy's,
    blurs less where sigma is below 1. Only the rows that the window needs are multiplied out: at 14x14 from 64x64, 70
    thousand multiplications an image and blur.

    Args:
      color: one of `COLORS`.
      sigma: of the blur for red and blue.
      band: the two of green and purple, the smaller first.
    """
    white = jax.random.normal(rng, (batch, field, field), jnp.float32)

    def blur(sigma: float) -> jax.Array:
        matrix = _blur_matrix(field, sigma)
        rows, columns = (jnp.asarray(matrix[:size]) for size in grid)
        # Full precision costs nothing here, and bfloat16 products would make ties.
        return jnp.einsum("ip,bpq,jq->bij", rows, white, columns, precision=jax.lax.Precision.HIGHEST)

    window = white[:, : grid[0], : grid[1]]
    if color == "red":
        return blur(sigma)
    if color == "blue":
        return window - blur(sigma)
    if color == "green":
        return blur(band[0]) - blur(band[1])
    if color == "purple":
        return window - (blur(band[0]) - blur(band[1]))
    return window


def gaussian_response(frequency: np.ndarray, sigma: float) -> np.ndarray:
    """What a Gaussian blur leaves of a wave, `exp(-2 pi^2 sigma^2 f^2)`; `frequency` is in cycles per patch."""
    return np.exp(-2.0 * (np.pi * sigma * frequency) ** 2)


@functools.lru_cache(maxsize=16)
def _blur_matrix(size: int, sigma: float) -> np.ndarray:
    """The circulant `[size, size]` that blurs one axis of a periodic field; its spectrum is the Gaussian's exactly."""
    kernel = np.fft.ifft(gaussian_response(np.fft.fftfreq(size), sigma)).real
    matrix = np.stack([np.roll(kernel, shift) for shift in range(size)]).astype(np.float32)
    matrix.setflags(write=False)
    return matrix


class Windows(NamedTuple):
    """Where each image's noise is cut from a stack of stored fields; every leaf is `[B]`.

    To replay what the official code draws, repeat its `top`, `left` and flips over the images of a pass, and count
    `field` up from 0 in each pass.
    """

    field: jax.Array  # int32, index into the stack
    top: jax.Array  # int32
    left: jax.Array  # int32
    flip_columns: jax.Array  # bool, a horizontal flip
    flip_rows: jax.Array  # bool, a vertical flip


def draw_windows(
    rng: jax.Array, batch: int, stack: tuple[int, int, int], grid: tuple[int, int], group: int | None
) -> Windows:
    """Random windows of `grid` patches from a stack of shape `stack`, `[L, M, M']`.

    As in the official code, `group` images share one offset and one pair of flips, and image i of a group uses field i;
    a group is at most the whole stack. With `group=None` every image draws for itself, the field included.
    """
    size = 1 if group is None else min(group, stack[0])
    field_rng, top_rng, left_rng, flip_rng = jax.random.split(rng, 4)
    draws = -(-batch // size)

    def share(drawn: jax.Array) -> jax.Array:
        return jnp.repeat(drawn, size, total_repeat_length=draws * size)[:batch]

    if group is None:
        field = jax.random.randint(field_rng, (batch,), 0, stack[0])
    else:
        field = jnp.arange(batch, dtype=jnp.int32) % size
    flips = jax.random.bernoulli(flip_rng, 0.5, (2, draws))
    return Windows(
        field=field,
        top=share(jax.random.randint(top_rng, (draws,), 0, stack[1] - grid[0] + 1)),
        left=share(jax.random.randint(left_rng, (draws,), 0, stack[2] - grid[1] + 1)),
        flip_columns=share(flips[0]),
        flip_rows=share(flips[1]),
    )


def cut_windows(stack: jax.Array, windows: Windows, grid: tuple[int, int]) -> jax.Array:
    """The noise `[B, *grid]` that `windows` shows of `stack [L, M, M']`."""

    def cut(field, top, left, flip_columns, flip_rows):
        window = jax.lax.dynamic_slice(stack, (field, top, left), (1, *grid))[0]
        window = jnp.where(flip_columns, window[:, ::-1], window)
        return jnp.where(flip_rows, window[::-1], window)

    return jax.vmap(cut)(*windows)


def noise_mask(noise: jax.Array, num_keep: int) -> TokenMask:
    """Keeps the `num_keep` patches of LARGEST noise `[B, h, w]`, the largest first; ties go to the lower index.

    The official code first divides every window by its own maximum, and so does this: where a whole window lies below
    zero, as happens with red noise, the division turns the order round.
    """
    noise = noise / noise.max(axis=(1, 2), keepdims=True)
    return TokenMask.from_noise(-noise.reshape(noise.shape[0], -1), num_keep)


def load_stack(path: str, grid: tuple[int, int]) -> np.ndarray:
    """The first array of an npz of stored noise, `[L, M, M']` float32, as the official code reads it.

    Raises:
      ConfigError: there is no such file.
      DataError: it holds no finite stack of fields of at least `grid` patches.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            stack = archive[archive.files[0]].astype(np.float32)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"The noise file {path!r} cannot be read ({reason}); correct noise.colors.") from error
    except (ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"The noise file {path!r} is no npz of plain arrays: {error}.") from error
    if stack.ndim != 3 or not np.isfinite(stack).all() or stack.shape[1] < grid[0] or stack.shape[2] < grid[1]:
        raise DataError(
            f"The noise file {path!r} must hold finite fields [L, M, M] of at least {grid[0]}x{grid[1]} patches; "
            f"it holds {stack.shape}."
        )
    return stack
