"""A head that turns features of one network into predictions of another's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.layers.block import gelu
from mim_jax.layers.compute import Compute
from mim_jax.layers.initializers import find_scheme, torch_default_bias, torch_default_kernel

KINDS = ("linear", "mlp")


class FeatureHead(nn.Module):
    """One dense layer to `width`, or two with a GELU between, the same for every token."""

    width: int
    kind: str = "linear"  # or "mlp", whose hidden layer is as wide as the output
    init_scheme: str | None = "xavier"  # with zero biases; None: PyTorch's defaults, random biases among them
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps `[..., D]` to float32 `[..., width]`."""
        x = self._dense(features, "fc1")
        if self.kind == "mlp":
            x = self._dense(gelu(x), "fc2")
        return x.astype(jnp.float32)

    def _dense(self, x: jax.Array, name: str) -> jax.Array:
        if self.init_scheme is None:
            kernel_init, bias_init = torch_default_kernel, torch_default_bias(x.shape[-1])
        else:
            kernel_init, bias_init = find_scheme(self.init_scheme).kernel, nn.initializers.zeros_init()
        dtype = self.compute.jax_dtype
        return nn.Dense(self.width, dtype=dtype, kernel_init=kernel_init, bias_init=bias_init, name=name)(x)
