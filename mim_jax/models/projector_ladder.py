"""A ladder of projectors: heads on every block of a student, one ladder for each feature it learns (UNIC)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.layers.block import MLP
from mim_jax.layers.compute import Compute
from mim_jax.layers.stack import stack_blocks

KINDS = ("class", "patch")


class _Rung(nn.Module):
    """Adds what one block's tokens contribute."""

    hidden: int
    width: int
    init_scheme: str
    compute: Compute

    @nn.compact
    def __call__(self, total: jax.Array, tokens: jax.Array) -> tuple[jax.Array, None]:
        mlp = MLP(self.hidden, self.compute, self.init_scheme, width=self.width, name="mlp")
        return total + mlp(tokens).astype(total.dtype), None


class Ladder(nn.Module):
    """The sum over blocks of an MLP of each block's tokens; there is no skip connection and no norm.

    Parameters: `blocks`, of all blocks but the last on a leading layer axis, and `last`, which may be wider.
    """

    width: int  # of the output
    hidden: int
    last_hidden: int
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, layers: jax.Array) -> jax.Array:
        """Maps the outputs of all blocks `[L, ..., D]` to `[..., width]` float32."""
        depth = layers.shape[0]
        total = jnp.zeros((*layers.shape[1:-1], self.width), jnp.float32)
        if depth > 1:
            total, _ = self._rungs(depth - 1, self.hidden, "blocks")(total, layers[:-1])
        total, _ = self._rungs(1, self.last_hidden, "last")(total, layers[-1:])
        return total

    def _rungs(self, count: int, hidden: int, name: str) -> Any:
        rungs = stack_blocks(_Rung, count, self.compute, in_axes=(0,))
        return rungs(hidden, self.width, self.init_scheme, self.compute, name=name)


class ProjectorLadders(nn.Module):
    """For each teacher a `Ladder` for its class feature and one for its patches: `<teacher>_class`, `<teacher>_patch`.

    What one block gives all teachers is read from one array; only the heads' hidden layers are kept for the backward
    pass (or recomputed, with `compute.remat`).
    """

    widths: tuple[tuple[str, int], ...]  # of the features of each teacher, by name
    hidden: int
    last_hidden: int
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, layers: jax.Array) -> dict[str, dict[str, jax.Array]]:
        """Maps all blocks' outputs `[L, B, 1 + N, D]` to `{teacher: {"class": [B, C], "patch": [B, N, C]}}` float32."""
        tokens = {"class": layers[:, :, 0], "patch": layers[:, :, 1:]}
        return {
            teacher: {
                kind: Ladder(
                    width, self.hidden, self.last_hidden, self.init_scheme, self.compute, name=f"{teacher}_{kind}"
                )(tokens[kind])
                for kind in KINDS
            }
            for teacher, width in self.widths
        }
