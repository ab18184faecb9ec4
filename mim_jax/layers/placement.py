"""Keeps activations where their batch is."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("data", "fsdp")  # the mesh axes over which batches are split


def split_over_batch(tree: Any) -> Any:
    """The same arrays, each constrained to have its leading axis split over the mesh's batch axes.

    Parameters sharded over "fsdp" and activations sharded over it have to meet in every product; left to itself, the
    compiler may well decide to move the activations. The other axes are left to the compiler, and so are scalars and
    arrays that do not divide. Does nothing unless it is traced for a mesh (`mim_jax.training.sharding.on_mesh`).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(BATCH_AXES) <= set(mesh.axis_names):
        return tree
    shards = mesh.shape[BATCH_AXES[0]] * mesh.shape[BATCH_AXES[1]]

    def constrain(x: jax.Array) -> jax.Array:
        if x.ndim == 0 or x.shape[0] % shards:
            return x
        return jax.lax.with_sharding_constraint(x, P(BATCH_AXES))

    return jax.tree.map(constrain, tree)
