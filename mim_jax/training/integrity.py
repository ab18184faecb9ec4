"""Whether arrays are what they should be: checksums, so that a flipped bit on disk is noticed, and finiteness.

Orbax restores damaged array data without a word; the checksum of every leaf is kept beside it and compared on restore.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mim_jax.training.paths import leaf_names

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def tree_checksums(tree: Any) -> dict[str, int]:
    """A 32-bit checksum of every leaf's bytes by path name; the same however the leaf is sharded."""
    sums = jax.device_get(_checksums(tree))
    return {name: int(value) for name, value in zip(leaf_names(tree), jax.tree.leaves(sums), strict=True)}


def nonfinite_leaves(tree: Any) -> list[str]:
    """Path names of the leaves with a value that is not finite."""
    finite = jax.device_get(_finite(tree))
    return [name for name, is_finite in zip(leaf_names(tree), jax.tree.leaves(finite), strict=True) if not is_finite]


@jax.jit
def _finite(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


@jax.jit
def _checksums(tree: Any) -> Any:
    return jax.tree.map(_checksum, tree)


def _checksum(x: jax.Array) -> jax.Array:
    # Addition modulo 2^32 does not depend on order, so shards may be summed as they lie. An odd weight per position
    # makes every single flipped bit change the sum, and swapped values too.
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize]).astype(jnp.uint32)
    position = jnp.zeros(bits.shape, jnp.uint32)
    stride = 1
    for dim in reversed(range(bits.ndim)):
        position = position + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dim) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[dim]
    weight = position * jnp.uint32(2654435761) * jnp.uint32(2) + jnp.uint32(1)
    return (bits * weight).sum(dtype=jnp.uint32)
