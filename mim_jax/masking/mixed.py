"""Mixing of several images patch by patch: who owns which patch of the mixed image (Chen et al. 2023, MixedAE)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from mim_jax.errors import ConfigError
from mim_jax.masking.token_mask import TokenMask


@struct.dataclass
class MixedMask:
    """Which patches each image of a batch `[B]` gives to the mixed image of its group; made by hand with `from_owners`.

    Images `k, k + B/g, k + 2B/g, ...` form group `k`, so that neither a micro-batch of every n-th image nor a shift of
    the whole batch cuts a group apart.
    """

    owned: TokenMask  # of each image, the patches it gives; "hidden" are those that its partners give
    segment: jax.Array  # [B] int32 in 0..g-1, the image's number within its group

    @classmethod
    def from_owners(cls, owners: jax.Array, group_size: int) -> MixedMask:
        """From `owners [B/g, N]` in 0..g-1: which member of the group gives each patch.

        Every member has to give the same number of patches, N / g; under `jit` this is not checked.
        """
        groups, num_patches = owners.shape
        members = jnp.arange(group_size, dtype=jnp.int32)
        hidden = owners.astype(jnp.int32)[None] != members[:, None, None]
        return cls(
            owned=TokenMask.from_bool(hidden.reshape(group_size * groups, num_patches), num_patches // group_size),
            segment=jnp.repeat(members, groups),
        )


def random_owners(rng: jax.Array, groups: int, num_patches: int, group_size: int) -> jax.Array:
    """A uniformly random member for each patch, every member `num_patches / group_size` times: `[groups, N]`."""
    noise = jax.random.uniform(rng, (groups, num_patches), jnp.float32)
    rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1).astype(jnp.int32)
    return rank // (num_patches // group_size)


def join_groups(tokens: jax.Array, group_size: int) -> jax.Array:
    """Sequences `[B, K, D]` to one per group, `[B/g, g * K, D]`: the members' tokens, member after member."""
    batch, count, width = tokens.shape
    tokens = tokens.reshape(group_size, batch // group_size, count, width)
    return tokens.swapaxes(0, 1).reshape(batch // group_size, group_size * count, width)


def part_groups(tokens: jax.Array, group_size: int) -> jax.Array:
    """The inverse of `join_groups`: `[B/g, g * K, D]` to `[B, K, D]`."""
    groups, count, width = tokens.shape
    tokens = tokens.reshape(groups, group_size, count // group_size, width)
    return tokens.swapaxes(0, 1).reshape(groups * group_size, count // group_size, width)


def check_groups(batch_size: int, group_size: int, accumulation_steps: int = 1) -> None:
    """Raises ConfigError unless every (micro-)batch consists of whole groups."""
    if batch_size % (group_size * accumulation_steps):
        micro = "" if accumulation_steps == 1 else f" times accumulation_steps {accumulation_steps}"
        raise ConfigError(
            f"A batch of {batch_size} images is not divisible by group_size {group_size}{micro}; change batch_size or "
            "group_size."
        )
