"""V-JEPA's multi-block masks of clips: blocks through time are predicted from all that is outside of them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mim_jax.errors import ConfigError

_MAX_DRAWS = 100  # of a clip's blocks; of two that cover 70 % of a 14x14 grid, up to 8 % leave no context


class ClipMask(NamedTuple):
    """One mask of each clip: tubes that are context and tubes that are predicted.

    Indices are those of the sequence, which runs by time, row and column. By hand: `ClipMask(context, targets)` with
    the index lists of the official collator, `[B, Kc]` and `[B, Kp]`, which are of one length in a batch.
    """

    context: jax.Array  # [B, Kc] int32
    targets: jax.Array  # [B, Kp] int32
    context_valid: jax.Array | None = None  # [B, Kc] bool: which slots are in use; None: all
    targets_valid: jax.Array | None = None  # [B, Kp] bool


@dataclasses.dataclass(frozen=True)
class MultiBlock3DSampler:
    """Samples `ClipMask`s with static token counts.

    The targets of a clip are the union of `num_blocks` boxes of one size, its context everything else. The size is
    drawn once per batch, from three uniform numbers for its time, its share of a frame and its aspect ratio; positions
    are drawn once per block and clip, up to and including the last that fits. Clips whose boxes leave no context are
    drawn again. All this is as in the official code, and is not what I-JEPA does (`multiblock.py`).

    The official code then cuts contexts and targets to the shortest list of the batch, so that lengths change from step
    to step and late frames are lost. Here a list has a fixed number of slots, `context_share` and `target_share` of the
    grid. A longer one loses its last tubes by time, row and column (`truncation="first"`, as in the official code) or
    random ones ("random"); a shorter one leaves slots unused, which no attention sees and no loss counts. So clips with
    much context keep what others lack, and no clip depends on the batch it is in.
    """

    grid: tuple[int, int, int]  # tubes in time, rows, columns
    num_blocks: int = 8  # per clip
    scale: tuple[float, float] = (0.15, 0.15)  # share of a frame that a block covers
    aspect: tuple[float, float] = (0.75, 1.5)  # of a block, height over width
    temporal_scale: tuple[float, float] = (1.0, 1.0)  # share of the frames that a block goes through
    context_share: float = 0.3  # slots as a share of the grid
    target_share: float = 0.55
    truncation: str = "first"

    def __post_init__(self):
        if self.num_blocks < 1:
            raise ConfigError(f"num_blocks is {self.num_blocks}; a mask needs at least one block.")
        for name in ("scale", "temporal_scale"):
            low, high = getattr(self, name)
            if not 0.0 < low <= high <= 1.0:
                raise ConfigError(f"{name} is ({low}, {high}); it must be an increasing pair in (0, 1].")
        low, high = self.aspect
        if not 0.0 < low <= high:
            raise ConfigError(f"aspect is ({low}, {high}); it must be an increasing pair of positive numbers.")
        for name in ("context_share", "target_share"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must lie in (0, 1].")
        if self.truncation not in ("first", "random"):
            raise ConfigError(f"truncation is {self.truncation!r}; choose 'first' or 'random'.")
        if self._may_cover_everything():
            raise ConfigError(
                f"A block of scale {self.scale[1]} may cover the whole {self.grid[1]}x{self.grid[2]} grid and leave no "
                "context; lower scale, or choose smaller patches."
            )

    @property
    def num_tubes(self) -> int:
        """Tubes of a clip, N."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def context_slots(self) -> int:
        """Kc."""
        return max(1, round(self.context_share * self.num_tubes))

    @property
    def target_slots(self) -> int:
        """Kp."""
        return max(1, round(self.target_share * self.num_tubes))

    def __call__(self, rng: jax.Array, batch: int) -> ClipMask:
        """A mask for each of `batch` clips; indices rise, and slots that are not in use come last and hold index 0."""
        hidden_rng, context_rng, target_rng = jax.random.split(rng, 3)
        hidden = self.hidden(hidden_rng, batch)
        context, context_valid = self._slots(context_rng, ~hidden, self.context_slots)
        targets, targets_valid = self._slots(target_rng, hidden, self.target_slots)
        return ClipMask(context, targets, context_valid, targets_valid)

    def hidden(self, rng: jax.Array, batch: int) -> jax.Array:
        """Which tubes are in a block, `[B, N]` bool; at least one of each clip is not."""
        size_rng, place_rng, last_rng = jax.random.split(rng, 3)
        size = self._block_size(jax.random.uniform(size_rng, (3,), jnp.float32))

        def lack_context(draw: tuple[jax.Array, jax.Array]) -> jax.Array:
            count, hidden = draw
            return hidden.all(axis=1).any() & (count < _MAX_DRAWS)

        def draw_again(draw: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            count, hidden = draw
            again = self._blocks(jax.random.fold_in(place_rng, count), size, batch, self.num_blocks)
            return count + 1, jnp.where(hidden.all(axis=1, keepdims=True), again, hidden)

        nothing_drawn = (jnp.zeros((), jnp.int32), jnp.ones((batch, self.num_tubes), bool))
        _, hidden = jax.lax.while_loop(lack_context, draw_again, nothing_drawn)
        # The official code would go on for ever; one block alone always leaves some context.
        return jnp.where(hidden.all(axis=1, keepdims=True), self._blocks(last_rng, size, batch, 1), hidden)

    def _block_size(self, uniform: jax.Array) -> tuple[jax.Array, ...]:
        times, height, width = self.grid

        def between(u: jax.Array, low: float, high: float) -> jax.Array:
            return low + u * (high - low)

        t = jnp.floor(between(uniform[0], *(share * times for share in self.temporal_scale)))
        area = jnp.floor(between(uniform[1], *(share * height * width for share in self.scale)))
        aspect = between(uniform[2], *self.aspect)
        h, w = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
        sizes = zip((t, h, w), self.grid, strict=True)
        return tuple(jnp.clip(size.astype(jnp.int32), 1, length) for size, length in sizes)

    def _blocks(self, rng: jax.Array, size: tuple[jax.Array, ...], batch: int, count: int) -> jax.Array:
        """The union of `count` blocks at random places, `[B, N]` bool."""
        inside = []
        for axis_rng, length, extent in zip(jax.random.split(rng, 3), self.grid, size, strict=True):
            start = jax.random.randint(axis_rng, (batch, count, 1), 0, length - extent + 1)
            position = jnp.arange(length, dtype=jnp.int32)[None, None]
            inside.append((position >= start) & (position < start + extent))
        times, rows, columns = inside
        blocks = times[:, :, :, None, None] & rows[:, :, None, :, None] & columns[:, :, None, None, :]
        return blocks.any(axis=1).reshape(batch, self.num_tubes)

    def _slots(self, rng: jax.Array, member: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """Indices of up to `count` true entries of each row of `member [B, N]`, and which of the slots are in use."""
        if self.truncation == "random":
            noise = jnp.where(member, jax.random.uniform(rng, member.shape, jnp.float32), jnp.inf)
            rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
            member = member & (rank < count)
        position = jnp.arange(self.num_tubes, dtype=jnp.int32)[None]
        ids = jnp.sort(jnp.where(member, position, self.num_tubes), axis=1)[:, :count]
        valid = ids < self.num_tubes
        return jnp.where(valid, ids, 0), valid

    def _may_cover_everything(self) -> bool:
        times, height, width = self.grid
        area = int(height * width * self.scale[1])
        # Aspect ratios at which both sides are rounded to the grid's or beyond.
        low, high = (height - 0.5) ** 2 / max(area, 1), area / (width - 0.5) ** 2
        whole_frames = max(low, self.aspect[0]) <= min(high, self.aspect[1]) or height * width == 1
        return whole_frames and max(1, int(times * self.temporal_scale[1])) >= times
