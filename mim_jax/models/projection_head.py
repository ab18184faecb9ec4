"""The projector and predictor of BYOL and its descendants: an MLP with a BatchNorm (Grill et al. 2020)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.layers.batch_norm import Statistics, normalize, normalize_batch
from mim_jax.layers.compute import Compute

EPSILON = 1e-5  # PyTorch's default


class ProjectionHead(nn.Module):
    """Dense without bias, BatchNorm, ReLU, dense without bias.

    The running statistics are an argument and a result; they are no variables of the module.
    """

    hidden: int
    output: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, statistics: Statistics, *, train: bool) -> tuple[jax.Array, Statistics]:
        """Maps `x [B, D]` to float32 `[B, output]`.

        With `train` the batch's own statistics normalise and move the running ones, which are returned; else the
        running ones normalise. Under `jit` the batch is the global one.
        """
        init = nn.initializers.xavier_uniform()
        dtype = self.compute.jax_dtype
        x = nn.Dense(self.hidden, use_bias=False, dtype=dtype, kernel_init=init, name="fc1")(x).astype(jnp.float32)
        if train:
            x, statistics = normalize_batch(x, statistics, EPSILON)
        else:
            x = normalize(x, statistics, EPSILON)
        scale = self.param("scale", nn.initializers.ones_init(), (self.hidden,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.hidden,), jnp.float32)
        x = jax.nn.relu(x * scale[None] + bias[None])
        x = nn.Dense(self.output, use_bias=False, dtype=dtype, kernel_init=init, name="fc2")(x)
        return x.astype(jnp.float32), statistics
