"""Dense layers whose matrix products are written so that XLA:CPU computes them fast."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
from flax import linen as nn


def flat_dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **options: Any) -> jax.Array:
    """`jax.lax.dot_general` of activations `[..., *K]` and a kernel `[*K, *N]`, summed over K, as matrices.

    XLA:CPU hands matrices to its kernels as they lie in memory, whichever axis is summed over. Arrays of more axes it
    first transposes, element by element, so that the gradient of a kernel cost up to four times as much. Where there
    are several devices nothing is flattened, since the kernel's axes may be sharded.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if jax.default_backend() != "cpu" or (not mesh.empty and mesh.size > 1):
        return jax.lax.dot_general(x, kernel, dimension_numbers, **options)
    summed = len(dimension_numbers[0][1])
    size = math.prod(kernel.shape[:summed])
    product = jax.lax.dot(x.reshape(-1, size), kernel.reshape(size, -1), **options)
    return product.reshape(*x.shape[: x.ndim - summed], *kernel.shape[summed:])


Dense = functools.partial(nn.Dense, dot_general=flat_dot_general)
DenseGeneral = functools.partial(nn.DenseGeneral, dot_general=flat_dot_general)
