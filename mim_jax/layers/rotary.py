"""Rotary position embedding over a patch grid (RoPE, Su et al. 2021, in the two-dimensional form of CroCo v2)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.errors import ConfigError

BASE = 100.0  # CroCo v2's "RoPE100"; text models use 10,000 for their longer sequences


class Rotation(NamedTuple):
    """The angles by which each token's queries and keys are turned."""

    cos: jax.Array  # float32 [B or 1, N, 1, Dh]
    sin: jax.Array


def grid_positions(grid: tuple[int, int]) -> np.ndarray:
    """`(row, column)` of every patch in raster order: int32 `[h * w, 2]`."""
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    return np.stack([rows.ravel(), columns.ravel()], axis=1).astype(np.int32)


def check_head_dim(width: int, heads: int, section: str) -> None:
    """Raises ConfigError unless a head has channels for two axes, each turned in pairs."""
    if width // heads % 4:
        raise ConfigError(
            f"{section}.width {width} over {section}.heads {heads} gives heads of {width // heads} channels; rotary "
            "positions need a multiple of 4."
        )


def grid_rotation(
    grid: tuple[int, int], head_dim: int, ids: jax.Array | None = None, prefix: int = 0, base: float = BASE
) -> Rotation:
    """The rotation of a patch grid's tokens: of all of them, or of the patches `ids [B, K]`.

    `prefix` tokens without a place, such as a class token, come first and are not turned.
    """
    rotation = make_rotation(jnp.asarray(grid_positions(grid))[None], head_dim, base)
    if ids is not None:
        rotation = jax.tree.map(lambda x: x[0][ids], rotation)
    if prefix:
        pad = ((0, 0), (prefix, 0), (0, 0), (0, 0))
        rotation = Rotation(jnp.pad(rotation.cos, pad, constant_values=1.0), jnp.pad(rotation.sin, pad))
    return rotation


def make_rotation(positions: jax.Array, head_dim: int, base: float = BASE) -> Rotation:
    """The rotation of heads of `head_dim` channels for `positions [B or 1, N, 2]`, (row, column) in patches.

    The first half of the channels is turned by the row, the second by the column. Within a half of D2 channels,
    channel k and channel k + D2/2 form a pair, turned by `position * base^(-2k / D2)`: pairs are halves apart
    (GPT-NeoX), not neighbours.
    """
    half = head_dim // 2
    frequencies = (base ** (-np.arange(0, half, 2, dtype=np.float64) / half)).astype(np.float32)
    angles = positions.astype(jnp.float32)[..., None] * jnp.asarray(frequencies)[None, None, None]  # [B, N, 2, D2/2]
    angles = jnp.concatenate([angles, angles], axis=-1).reshape(*positions.shape[:2], 1, head_dim)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Turns queries or keys `x [B, N, H, Dh]`, in float32; the result has the dtype of `x`."""
    batch, length, heads, head_dim = x.shape
    first, second = jnp.split(x.astype(jnp.float32).reshape(batch, length, heads, 2, head_dim // 2), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1).reshape(x.shape)
    return (x.astype(jnp.float32) * rotation.cos + turned * rotation.sin).astype(x.dtype)
