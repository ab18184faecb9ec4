"""Blocks of one kind after another, with their parameters stacked on a leading layer axis."""

from __future__ import annotations

from typing import Any

from flax import linen as nn

from mim_jax.layers.compute import Compute


def stack_blocks(block: type[nn.Module], depth: int, compute: Compute, in_axes: tuple[Any, ...]) -> Any:
    """`depth` of `block` as one module class, scanned or unrolled and rematerialised as `compute` says.

    The parameter tree is the same either way.

    Args:
      block: maps `(x, *inputs)` to `(x, what is collected of each block or None)`.
      depth: how many.
      compute: how they are executed.
      in_axes: of `inputs`: 0 for what has a leading layer axis, `nn.broadcast` for what all blocks are given alike.
    """
    # Inside a scan the loop itself keeps XLA from merging the recomputation with the forward pass.
    return nn.scan(
        remat_block(block, compute, prevent_cse=not compute.scans),
        variable_axes={"params": 0, "batch_stats": 0, "intermediates": 0},
        split_rngs={"params": True, "drop_path": True, "dropout": True},
        in_axes=in_axes,
        length=depth,
        unroll=1 if compute.scans else depth,
    )


def remat_block(block: type[nn.Module], compute: Compute, prevent_cse: bool = True) -> type[nn.Module]:
    """`block` as a module class that is rematerialised as `compute` says."""
    if compute.remat_policy is None:
        return block
    return nn.remat(block, policy=compute.remat_policy, prevent_cse=prevent_cse)
