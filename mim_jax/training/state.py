"""The training state: everything that is not a pure function of (config, step)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from mim_jax.contract import Objective, Variables


@struct.dataclass
class TrainState:
    """What a checkpoint holds. Randomness and data order are functions of (seed, step), so no key is kept."""

    step: jax.Array  # updates made or skipped, int32 []
    variables: Variables  # params, and teacher and state where the objective has them
    opt_state: Any
    skipped: jax.Array  # updates skipped because something was not finite, int32 []
    consecutive_skipped: jax.Array  # of these, the last ones in a row, int32 []
    typical_grad_norm: jax.Array  # running mean over the updates made, float32 []


def create_state(
    objective: Objective, optimizer: optax.GradientTransformation, rng: jax.Array, batch_spec: dict
) -> TrainState:
    """A fresh state at step 0; traceable, so that it can be created sharded or abstractly."""
    return state_from_variables(objective.init(rng, batch_spec), optimizer)


def state_from_variables(variables: Variables, optimizer: optax.GradientTransformation) -> TrainState:
    """A state at step 0 around given variables."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        variables=variables,
        opt_state=optimizer.init(variables["params"]),
        skipped=zero,
        consecutive_skipped=zero,
        typical_grad_norm=jnp.zeros((), jnp.float32),
    )
