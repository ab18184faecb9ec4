"""DINO's head: an MLP, a bottleneck on the unit sphere, and the cosines to K prototypes (Caron et al. 2021)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.layers.block import gelu
from mim_jax.layers.compute import Compute
from mim_jax.layers.initializers import find_scheme
from mim_jax.layers.unit import unit


class PrototypeHead(nn.Module):
    """Three dense layers with GELUs between; class and patch tokens go through it alike.

    The prototypes are of length 1 whatever their parameters' lengths, which is weight normalisation with its gain fixed
    at 1.
    """

    count: int
    hidden: int
    bottleneck: int
    init_scheme: str = "xavier"
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps `[..., D]` to float32 cosines `[..., count]`."""
        dtype, kernel_init = self.compute.jax_dtype, find_scheme(self.init_scheme).kernel
        x = tokens
        for number, width in enumerate((self.hidden, self.hidden, self.bottleneck), start=1):
            x = x if number == 1 else gelu(x)
            x = nn.Dense(width, dtype=dtype, kernel_init=kernel_init, name=f"fc{number}")(x)
        prototypes = self.param("prototypes", kernel_init, (self.bottleneck, self.count), jnp.float32)
        return jnp.einsum(
            "...d,dk->...k",
            unit(x).astype(dtype),
            unit(prototypes, axis=0).astype(dtype),
            preferred_element_type=jnp.float32,
        )


def default_config() -> ConfigDict:
    """The `prototypes` section."""
    return ConfigDict(dict(count=8192, hidden=2048, bottleneck=256))


def build(section: ConfigDict, init_scheme: str, compute: Compute) -> PrototypeHead:
    """The head a `prototypes` section asks for; raises ConfigError for sizes that are none."""
    for key in ("count", "hidden", "bottleneck"):
        if section[key] < (2 if key == "count" else 1):
            raise ConfigError(f"prototypes.{key} is {section[key]}; it must be at least {2 if key == 'count' else 1}.")
    return PrototypeHead(section.count, section.hidden, section.bottleneck, init_scheme, compute)
