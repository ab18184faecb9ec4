"""A teacher's features as what a student's are aligned with, level by level (Xue et al. 2023, MaskAlign)."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp

from mim_jax.errors import ConfigError
from mim_jax.layers.unit import unit
from mim_jax.targets.features import normalized_features, smooth_l1

NORMALIZATIONS = ("whiten", "l2", "bn", "none")
DISTANCES = ("smooth_l1", "l2", "l1")
_EPSILON = 1e-5  # PyTorch's default for LayerNorm
_TENSOR_EPSILON = 1e-6


def normalize_target(features: jax.Array, kind: str) -> jax.Array:
    """`features [..., C]` as targets, float32.

    "whiten" gives every token mean 0 and variance 1 over its channels, "l2" length 1; "bn" takes one mean and one
    unbiased variance of the whole array (under `jit`, of the global batch); "none" leaves them alone.
    """
    features = features.astype(jnp.float32)
    if kind == "whiten":
        return normalized_features(features, _EPSILON)
    if kind == "l2":
        return unit(features)
    if kind == "bn":
        return (features - features.mean()) / jnp.sqrt(features.var(ddof=1) + _TENSOR_EPSILON)
    return features


def distance(prediction: jax.Array, target: jax.Array, kind: str) -> jax.Array:
    """How far apart float32 arrays are, for every element.

    "smooth_l1" is twice the usual one, as MaskAlign's code has it: `d^2` where `|d| < 1`, else `2|d| - 1`.
    """
    if kind == "smooth_l1":
        return 2.0 * smooth_l1(prediction, target, beta=1.0)
    difference = prediction - target
    return jnp.square(difference) if kind == "l2" else jnp.abs(difference)


def level_weights(name: str, num_levels: int) -> tuple[float, ...]:
    """The weights of the losses of all levels, from the lowest.

    "mean": all alike; "out": only the last; "top<k>": the last k alike; "mid<i>": only level i, counted from 0;
    "linear_decay": in proportion to that number, so that the lowest has none.

    Raises:
      ConfigError: `name` is none of these, or there are not so many levels.
    """
    if name == "mean":
        return (1.0 / num_levels,) * num_levels
    if name == "out":
        return (0.0,) * (num_levels - 1) + (1.0,)
    if name == "linear_decay" and num_levels > 1:
        return tuple(level / sum(range(num_levels)) for level in range(num_levels))
    found = re.fullmatch(r"(top|mid)(\d+)", name)
    if found:
        number = int(found[2])
        if found[1] == "top" and 1 <= number <= num_levels:
            return (0.0,) * (num_levels - number) + (1.0 / number,) * number
        if found[1] == "mid" and number < num_levels:
            return tuple(float(level == number) for level in range(num_levels))
    raise ConfigError(
        f"level_weights is {name!r}, which does not fit a teacher of {num_levels} blocks; choose 'mean', 'out', "
        f"'linear_decay', 'top1' to 'top{num_levels}', or 'mid0' to 'mid{num_levels - 1}'."
    )
