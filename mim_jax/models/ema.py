"""Teachers that are exponential moving averages of what is trained, and the schedules of their momentum."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mim_jax.contract import Variables

Momentum = jax.Array | float


def copy_tree(tree: Any) -> Any:
    """A teacher's start: equal to `tree`, in buffers of its own.

    The training step donates its input, and a buffer can be donated only once.
    """
    return jax.tree.map(jnp.copy, tree)


def ema(old: Any, new: Any, momentum: Momentum) -> Any:
    """`momentum * old + (1 - momentum) * new` for every leaf of two equal trees."""
    return jax.tree.map(lambda old, new: momentum * old + (1.0 - momentum) * new, old, new)


def move_teacher(variables: Variables, momentum: Momentum) -> Variables:
    """Moves every entry of `variables["teacher"]` towards the entry of that name in `variables["params"]`."""
    teacher = variables["teacher"]
    return {**variables, "teacher": ema(teacher, {name: variables["params"][name] for name in teacher}, momentum)}


def linear_momentum(progress: Momentum, start: float, end: float = 1.0) -> Momentum:
    """From `start` to `end` in a straight line as `progress` goes from 0 to 1."""
    return start + (end - start) * progress


def cosine_momentum(progress: Momentum, start: float, end: float = 1.0) -> jax.Array:
    """From `start` to `end` along half a cosine as `progress` goes from 0 to 1 (Grill et al. 2020, BYOL)."""
    return end - (end - start) * (jnp.cos(jnp.pi * progress) + 1.0) / 2.0
