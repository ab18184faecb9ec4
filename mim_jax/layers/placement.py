"""Keeps activations where their batch is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("data", "fsdp")  # the mesh axes over which batches are split


def num_batch_shards() -> int | None:
    """Over how many devices the batch is split; None unless this is traced for a mesh (`training.sharding.on_mesh`)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(BATCH_AXES) <= set(mesh.axis_names):
        return None
    return mesh.shape[BATCH_AXES[0]] * mesh.shape[BATCH_AXES[1]]


def split_over_batch(tree: Any) -> Any:
    """The same arrays, each constrained to have its leading axis split over the mesh's batch axes.

    Parameters sharded over "fsdp" and activations sharded over it have to meet in every product; left to itself, the
    compiler may well decide to move the activations. The other axes are left to the compiler, and so are scalars and
    arrays that do not divide. Does nothing unless it is traced for a mesh.
    """
    shards = num_batch_shards()
    if shards is None:
        return tree

    def constrain(x: jax.Array) -> jax.Array:
        if x.ndim == 0 or x.shape[0] % shards:
            return x
        return jax.lax.with_sharding_constraint(x, P(BATCH_AXES))

    return jax.tree.map(constrain, tree)


def apply_to_own_rows(function: Callable[..., Any], *arrays: jax.Array) -> Any:
    """`function(*arrays)` for a function of each row by itself, which every device applies to its own rows.

    For operations the compiler cannot split along the batch: a Fourier transform would otherwise gather the batch of
    all devices on every one of them. All arrays and results lead with the batch. A plain call where there is no mesh,
    or where it does not divide the batch.
    """
    shards = num_batch_shards()
    if shards is None or any(x.shape[0] % shards for x in arrays):
        return function(*arrays)
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(function, mesh=mesh, in_specs=P(BATCH_AXES), out_specs=P(BATCH_AXES))(*arrays)
