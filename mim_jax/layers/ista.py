"""One step of the iterative shrinkage-thresholding algorithm, the sparsifying half of a CRATE layer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class ISTA(nn.Module):
    """A proximal gradient step towards the non-negative sparse code of the tokens `z` in a learned dictionary `D`.

    `ReLU(z + step_size * (D^T (z - D z) - threshold))`, columns being tokens: it starts from `z` itself and minimises
    `|z - D a|^2 / 2 + threshold * |a|_1` over `a >= 0`. The code takes the place of the tokens; there is no residual
    connection around it. `kernel [D, D]` applies the dictionary to rows, `z @ kernel`.
    """

    step_size: float = 0.1
    threshold: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """Maps `[..., D]` to non-negative `[..., D]`."""
        width = z.shape[-1]
        kernel = self.param("kernel", nn.initializers.he_uniform(), (width, width), jnp.float32).astype(self.dtype)
        # The official code multiplies three times, D^T z - D^T (D z).
        gradient = jnp.einsum("...o,io->...i", z - z @ kernel, kernel)
        return nn.relu(z + self.step_size * gradient - self.step_size * self.threshold)
