"""I-JEPA's multi-block masks: one large context from which several target blocks are cut out (section 3, figure 4)."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mim_jax.errors import ConfigError


class BlockMasks(NamedTuple):
    """Which patches are context and which are predicted, in the form of the official collator.

    Indices are int32 in raster order. Any pair of sequences of `[B, K]` arrays does as well.
    """

    context: tuple[jax.Array, ...]  # one [B, Kc] array per context block
    targets: tuple[jax.Array, ...]  # one [B, Kp] array per target block


@dataclasses.dataclass(frozen=True)
class MultiBlockSampler:
    """Samples `BlockMasks` with static token counts.

    Block sizes are drawn once per batch, positions once per image. One uniform number per size sets both its scale
    and its aspect ratio, and the largest offset is excluded, so that the last row and column are never used: both as
    in the official code.

    The official code cuts every list to the shortest of the batch, so its counts change from step to step. Here they
    are fixed: target lists hold as many tokens as the smallest possible block, and the context `context_share` of the
    grid. A longer list loses its last tokens in raster order (`truncation="first"`, as in the official code) or random
    ones ("random"). An image with fewer context tokens is filled up from the last target blocks first, which is what
    the official fallback allows.
    """

    grid: tuple[int, int]
    num_targets: int = 4  # target blocks per image
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    context_share: float = 0.26  # of the grid; what the official code leaves at 128 images a device, simulated
    truncation: str = "first"

    def __post_init__(self):
        for name in ("target_scale", "context_scale"):
            low, high = getattr(self, name)
            if not 0.0 < low <= high <= 1.0:
                raise ConfigError(f"{name} is ({low}, {high}); it must be an increasing pair in (0, 1].")
        if min(self.grid) < 2:
            raise ConfigError(
                f"Multi-block masks need a grid of at least 2x2 patches, not {self.grid[0]}x{self.grid[1]}."
            )
        if self.truncation not in ("first", "random"):
            raise ConfigError(f"truncation is {self.truncation!r}; choose 'first' or 'random'.")
        if not 0.0 < self.context_share <= 1.0:
            raise ConfigError(f"context_share is {self.context_share}; it must lie in (0, 1].")

    @property
    def context_tokens(self) -> int:
        """Tokens of the context, Kc: at most those of the smallest context block."""
        wanted = max(1, round(self.context_share * self.grid[0] * self.grid[1]))
        return min(wanted, self._smallest_block(self.context_scale, (1.0, 1.0)))

    @property
    def target_tokens(self) -> int:
        """Tokens of each target block, Kp: those of the smallest one."""
        return self._smallest_block(self.target_scale, self.target_aspect)

    def __call__(self, rng: jax.Array, batch: int) -> BlockMasks:
        """Masks for `batch` images."""
        target_size_rng, context_size_rng, place_rng, context_rng, drop_rng = jax.random.split(rng, 5)
        size = self._block_size(jax.random.uniform(target_size_rng), self.target_scale, self.target_aspect)
        targets = self._place(place_rng, size, (batch, self.num_targets))  # [B, T, N] bool
        context_size = self._block_size(jax.random.uniform(context_size_rng), self.context_scale, (1.0, 1.0))
        context = self._place(context_rng, context_size, (batch,))  # [B, N] bool
        ids = tuple(_first(targets[:, i], self.target_tokens) for i in range(self.num_targets))
        return BlockMasks(context=(self._context_ids(drop_rng, context, targets),), targets=ids)

    def _block_size(self, uniform: jax.Array, scale: tuple[float, float], aspect: tuple[float, float]):
        height, width = self.grid
        area = jnp.floor(height * width * (scale[0] + uniform * (scale[1] - scale[0])))
        ratio = aspect[0] + uniform * (aspect[1] - aspect[0])
        h = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
        w = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
        return jnp.clip(h, 1, height - 1), jnp.clip(w, 1, width - 1)

    def _smallest_block(self, scale: tuple[float, float], aspect: tuple[float, float]) -> int:
        height, width = self.grid
        areas = []
        for step in range(1001):
            u = step / 1000
            area = int(height * width * (scale[0] + u * (scale[1] - scale[0])))
            ratio = aspect[0] + u * (aspect[1] - aspect[0])
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            areas.append(min(max(h, 1), height - 1) * min(max(w, 1), width - 1))
        return min(areas)

    def _place(self, rng: jax.Array, size: tuple[jax.Array, jax.Array], shape: tuple[int, ...]) -> jax.Array:
        (height, width), (h, w) = self.grid, size
        top_rng, left_rng = jax.random.split(rng)
        top = jax.random.randint(top_rng, shape, 0, height - h)[..., None]
        left = jax.random.randint(left_rng, shape, 0, width - w)[..., None]
        rows, columns = jnp.divmod(jnp.arange(height * width, dtype=jnp.int32), width)
        rows, columns = (x.reshape((1,) * len(shape) + (-1,)) for x in (rows, columns))
        return (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)

    def _context_ids(self, rng: jax.Array, context: jax.Array, targets: jax.Array) -> jax.Array:
        # The official fallback gives up the last target's exclusion first, so a patch becomes available only once every
        # target from the first that covers it onwards is given up.
        batch, count, num_patches = targets.shape
        first = jnp.argmax(targets, axis=1)
        given_up = jnp.where(targets.any(axis=1), count - first, 0)
        priority = jnp.where(context, given_up, count + 1)
        if self.truncation == "random":
            tie = jax.random.uniform(rng, (batch, num_patches), jnp.float32)
        else:
            tie = jnp.broadcast_to(jnp.arange(num_patches, dtype=jnp.float32)[None] / num_patches, (batch, num_patches))
        order = jnp.argsort(priority.astype(jnp.float32) + tie, axis=1)
        return jnp.sort(order[:, : self.context_tokens], axis=1).astype(jnp.int32)


def _first(member: jax.Array, count: int) -> jax.Array:
    """Indices of the first `count` true entries of each row of `member [B, N]`, `[B, count]` int32."""
    return jnp.argsort(~member, axis=1, stable=True)[:, :count].astype(jnp.int32)
