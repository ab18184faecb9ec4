"""Which of a student's blocks speak of which of a teacher's (Xue et al. 2023, MaskAlign, section 3.4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.layers.block import gelu, layer_norm
from mim_jax.layers.compute import Compute
from mim_jax.layers.initializers import find_scheme

FUSIONS = ("linear", "sum", "simple")
ADAPTERS = ("linear", "norm_linear", "mlp", "mlp2")


class Adapter(nn.Module):
    """A dense layer to the teacher's width, with something before it.

    "norm_linear": a norm; "mlp": a dense layer and a GELU; "mlp2": a dense layer and a norm.
    """

    width: int
    kind: str = "linear"
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., D]` to float32 `[..., width]`."""
        if self.kind in ("mlp", "mlp2"):
            x = self._dense(x, x.shape[-1], "hidden")
        if self.kind in ("norm_linear", "mlp2"):
            x = layer_norm(self.compute, "norm")(x)
        if self.kind == "mlp":
            x = gelu(x)
        return self._dense(x, self.width, "projection").astype(jnp.float32)

    def _dense(self, x: jax.Array, width: int, name: str) -> jax.Array:
        kernel_init = find_scheme(self.init_scheme).kernel
        return nn.Dense(width, dtype=self.compute.jax_dtype, kernel_init=kernel_init, name=name)(x)


class DynamicAlignment(nn.Module):
    """For some of the teacher's blocks ("levels"), predicts their outputs from those of all the student's blocks.

    A learned matrix mixes the student's blocks, and each level has an adapter of its own; other levels cost nothing.
    Parameters: `mixing [num_levels, Ls]` (not with "simple" fusion) and `level1`, `level2`, ... by the teacher's block.
    """

    num_levels: int  # blocks of the teacher
    width: int  # of the teacher
    levels: tuple[int, ...]  # which of its blocks, from 1
    fusion: str = "linear"
    adapter: str = "linear"
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, layers: jax.Array) -> jax.Array:
        """Maps the student's blocks' outputs `[Ls, B, T, D]` to float32 `[B, len(levels), T, width]`."""
        rows = jnp.asarray(self.levels, jnp.int32) - 1
        if self.fusion == "simple":
            mixed = layers[rows]
        else:
            mixing = self.param("mixing", self._initial_mixing, (self.num_levels, layers.shape[0]))
            # Of full precision: the raw outputs of deep blocks are large, and differ by little.
            mixed = jnp.einsum("ij,jbtd->ibtd", mixing[rows], layers.astype(jnp.float32), precision="highest")
        adapted = [
            Adapter(self.width, self.adapter, self.init_scheme, self.compute, name=f"level{level}")(x)
            for level, x in zip(self.levels, mixed, strict=True)
        ]
        return jnp.stack(adapted, axis=1)

    def _initial_mixing(self, rng: jax.Array, shape: tuple[int, int]) -> jax.Array:
        del rng
        if self.fusion == "sum":
            return jnp.full(shape, 1.0 / shape[1], jnp.float32)
        # 0.01 everywhere, the diagonal included.
        return jnp.eye(*shape, dtype=jnp.float32) + 0.01
