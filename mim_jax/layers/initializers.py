"""Named initialisation schemes; each gives the initialisers for every kind of parameter a transformer has."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.errors import ConfigError

Initializer = Callable[..., jax.Array]


def symmetric_uniform(limit: float) -> Initializer:
    """Uniform on `[-limit, limit]`."""

    def init(rng: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(rng, shape, dtype, minval=-limit, maxval=limit)

    return init


def torch_default_kernel(rng: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """PyTorch's default for Linear and Conv weights: kaiming-uniform with a = sqrt(5), i.e. limit `1/sqrt(fan_in)`."""
    return symmetric_uniform(1.0 / math.sqrt(math.prod(shape[:-1])))(rng, shape, dtype)


def torch_default_bias(fan_in: int) -> Initializer:
    """PyTorch's default bias of a Linear or Conv layer with `fan_in` inputs: limit `1/sqrt(fan_in)`."""
    return symmetric_uniform(1.0 / math.sqrt(fan_in))


@dataclasses.dataclass(frozen=True)
class InitScheme:
    """Initialisers of one family of models."""

    kernel: Initializer  # dense layers, attention projections, patch embedding
    token: Initializer  # class token, mask token
    patch_bias: Callable[[int], Initializer]  # of the patch embedding, given p * p * channels
    patch_kernel: Initializer | None = None  # of the patch embedding; None: `kernel`


def one_sigma_normal(rng: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Normal of standard deviation 0.02 before it is cut at one standard deviation (SimMIM's ViT)."""
    return 0.02 * jax.random.truncated_normal(rng, -1.0, 1.0, shape, dtype)


def _zero_patch_bias(fan_in: int) -> Initializer:
    del fan_in
    return nn.initializers.zeros_init()


_normal = nn.initializers.normal(0.02)
_SCHEMES = {
    # MAE: xavier on the fused (D, 3D) projection; the patch bias keeps PyTorch's convolution default.
    "xavier": InitScheme(nn.initializers.xavier_uniform(), _normal, torch_default_bias),
    # I-JEPA: PyTorch's trunc_normal_(std=0.02) cuts at +-2, a hundred sigmas away, so it is a plain normal.
    "normal": InitScheme(_normal, _normal, _zero_patch_bias),
    # DINOv2: as that, and the patch embedding keeps PyTorch's convolution default.
    "dinov2": InitScheme(_normal, _normal, torch_default_bias, torch_default_kernel),
    # SimMIM's pre-training ViT sets the bounds to +-std: one sigma.
    "one_sigma_normal": InitScheme(one_sigma_normal, one_sigma_normal, _zero_patch_bias),
    # CAE: as SimMIM's, until everything but tokens and patch embedding is initialised again.
    "xavier_one_sigma": InitScheme(
        nn.initializers.xavier_uniform(), one_sigma_normal, _zero_patch_bias, one_sigma_normal
    ),
}


def find_scheme(name: str) -> InitScheme:
    """The scheme called `name`; raises ConfigError naming the known ones."""
    if name not in _SCHEMES:
        raise ConfigError(f"model.init_scheme is {name!r}; choose one of {', '.join(_SCHEMES)}.")
    return _SCHEMES[name]


def rescale_residual_kernels(encoder: dict) -> dict:
    """Divides the last kernel of both branches of block `i` (from 1) by `sqrt(2 i)`, as BEiT and SimMIM initialise."""

    def rescale(path, leaf):
        names = tuple(key.key for key in path)
        if names[-3:] not in (("attention", "out", "kernel"), ("mlp", "fc2", "kernel")):
            return leaf
        block = jnp.arange(1, leaf.shape[0] + 1, dtype=leaf.dtype)
        return leaf / jnp.sqrt(2.0 * block).reshape((-1,) + (1,) * (leaf.ndim - 1))

    return jax.tree_util.tree_map_with_path(rescale, encoder)
