"""Position embeddings: fixed sin-cos tables, resizing of learned ones, and the relative bias of BEiT."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mim_jax.errors import ConfigError
from mim_jax.layers.initializers import Initializer
from mim_jax.layers.resize import bicubic_matrix

POSITIONS = ("sincos", "sincos_rows_first", "sincos_learned", "learned", "none", "rope")


@functools.lru_cache(maxsize=32)
def sincos_table(grid: tuple[int, int], width: int, rows_first: bool = False) -> np.ndarray:
    """Fixed 2-D sin-cos position table `[h * w, width]` float32 (He et al. 2022, as their code computes it).

    The first half of the channels encodes the COLUMN, the second half the row (mmpretrain has it the other way round:
    `rows_first`); each half is `[sin | cos]` of the unscaled coordinate times `10000^(-k / (width/4))`, in float64
    before the cast.

    Raises:
      ConfigError: the width is not a multiple of 4.
    """
    if width % 4:
        raise ConfigError(f"A sin-cos position table needs a width that is a multiple of 4, not {width}.")
    omega = 10000.0 ** (-np.arange(width // 4, dtype=np.float64) / (width // 4))
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")

    def encode(coordinate: np.ndarray) -> np.ndarray:
        angles = coordinate.reshape(-1, 1).astype(np.float64) * omega
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    halves = (rows, columns) if rows_first else (columns, rows)
    table = np.concatenate([encode(half) for half in halves], axis=1).astype(np.float32)
    table.setflags(write=False)
    return table


@dataclasses.dataclass(frozen=True)
class Resize:
    """How position tables of another grid are resized; see `bicubic_matrix`."""

    offset: float = 0.0
    antialias: bool = False

    def __call__(self, table: np.ndarray, source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
        """A table `[h * w, D]` for another grid."""
        return resize_position_table(table, source, target, self)


def resize_position_table(
    table: np.ndarray, source: tuple[int, int], target: tuple[int, int], resize: Resize | None = None
) -> np.ndarray:
    """Bicubic resize of a table `[h * w, D]` to another grid, as PyTorch's `interpolate` does."""
    table = np.asarray(table)
    if source == target:  # with an offset the identity would not come out
        return table
    grid = table.reshape(*source, -1).astype(np.float64)
    options = dataclasses.asdict(resize or Resize())
    rows, columns = (bicubic_matrix(old, new, **options) for old, new in zip(source, target, strict=True))
    resized = np.einsum("ai,bj,ijd->abd", rows, columns, grid, optimize=True)
    return resized.reshape(target[0] * target[1], -1).astype(table.dtype)


def decoder_position(encoder_position: str) -> str:
    """The fixed table of a decoder or predictor: of the encoder's order, whatever else its positions are.

    A learned table belongs to the encoder; without positions of its own a decoder could not place its mask tokens.
    """
    return encoder_position if encoder_position == "sincos_rows_first" else "sincos"


class PositionTable(nn.Module):
    """Absolute positions for a patch grid, fixed or trained (`position` is one of `POSITIONS`).

    A trained `table` is `[(1 +) h * w, width]`, with the class token's row first where there is one, as in public
    checkpoints. Fixed tables are constants: they are no parameters and get no gradient.
    """

    grid: tuple[int, int]
    width: int
    position: str = "sincos"
    class_token: bool = False
    learned_init: Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self) -> tuple[jax.Array | None, jax.Array | None]:
        """Float32 table of the patches `[h * w, width]` and row of the class token `[width]`; None where absent."""
        if self.position in ("none", "rope"):  # rotary positions are in the attention
            return None, None
        if self.position in ("sincos", "sincos_rows_first"):
            return jnp.asarray(sincos_table(self.grid, self.width, self.position == "sincos_rows_first")), None
        prefix = int(self.class_token)
        shape = (prefix + self.grid[0] * self.grid[1], self.width)
        if self.position == "sincos_learned":
            fixed = np.pad(sincos_table(self.grid, self.width), ((prefix, 0), (0, 0)))
            table = self.param("table", lambda _: jnp.asarray(fixed))
        else:
            table = self.param("table", self.learned_init, shape, jnp.float32)
        return table[prefix:], table[0] if prefix else None


@functools.lru_cache(maxsize=16)
def relative_index(grid: tuple[int, int], class_token: bool) -> np.ndarray:
    """Row of the relative bias table for every (query, key) pair, `[T, T]` int32, T = h * w (+ 1).

    A pair of patches has row `(dy + h - 1) * (2w - 1) + (dx + w - 1)`, query minus key. The last three rows belong to
    the class token: as query, as key, with itself (BEiT, Bao et al. 2022).
    """
    height, width = grid
    rows, columns = np.divmod(np.arange(height * width), width)
    dy = rows[:, None] - rows[None, :] + height - 1
    dx = columns[:, None] - columns[None, :] + width - 1
    index = dy * (2 * width - 1) + dx
    if class_token:
        size = (2 * height - 1) * (2 * width - 1) + 3
        index = np.pad(index, ((1, 0), (1, 0)))
        index[0, :], index[:, 0], index[0, 0] = size - 3, size - 2, size - 1
    index = index.astype(np.int32)
    index.setflags(write=False)
    return index


class RelativeBias(nn.Module):
    """A learned attention bias by relative position."""

    grid: tuple[int, int]
    heads: int
    class_token: bool = True
    table_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self) -> jax.Array:
        """The bias `[1, H, T, T]` in float32."""
        height, width = self.grid
        size = (2 * height - 1) * (2 * width - 1) + (3 if self.class_token else 0)
        table = self.param("table", self.table_init, (size, self.heads), jnp.float32)
        bias = table[jnp.asarray(relative_index(self.grid, self.class_token))]
        return bias.transpose(2, 0, 1)[None]
