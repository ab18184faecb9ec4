"""BatchNorm over the visible sites of a batch, with PyTorch's running statistics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.errors import ConfigError
from mim_jax.layers.batch_norm import MOMENTUM
from mim_jax.layers.compute import Compute
from mim_jax.layers.sites import Features, Sites

EPSILON = 1e-5  # PyTorch's default


class BatchNorm(nn.Module):
    """Parameters `scale [C]` and `bias [C]`; `mean [C]` and `var [C]` in the collection "batch_stats"."""

    zero_scale: bool = False  # whether scale starts at 0 instead of 1
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Features, sites: Sites, *, train: bool = False) -> Features:
        """Normalises every channel over all visible sites of the global batch, or by the running statistics.

        With `train` the batch's mean and biased variance normalise, and its mean and unbiased variance move the running
        ones; "batch_stats" must then be mutable.

        Raises:
          ConfigError: there is only one site in the batch.
        """
        shape = (sites.features(x).shape[-1],)
        initial_scale = nn.initializers.zeros_init() if self.zero_scale else nn.initializers.ones_init()
        scale = self.param("scale", initial_scale, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if train:
            mean, variance, count = sites.moments(x)
            if isinstance(count, int) and count < 2:
                raise ConfigError("BatchNorm needs at least two visible sites in a batch; raise batch_size.")
            if not self.is_initializing():
                unbiased = variance * (count / jnp.maximum(count - 1.0, 1.0))
                running_mean.value = (1.0 - MOMENTUM) * running_mean.value + MOMENTUM * mean
                running_var.value = (1.0 - MOMENTUM) * running_var.value + MOMENTUM * unbiased
        else:
            mean, variance = running_mean.value, running_var.value
        factor = scale * jax.lax.rsqrt(variance + EPSILON)
        offset = bias - mean * factor

        def normalize(x: jax.Array) -> jax.Array:
            axes = tuple(range(x.ndim - 1))
            y = x.astype(jnp.float32) * jnp.expand_dims(factor, axes) + jnp.expand_dims(offset, axes)
            return y.astype(self.compute.jax_dtype)

        return sites.map(normalize, x)
