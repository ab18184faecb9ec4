"""Linear classifiers on frozen features, one for each learning rate of a sweep, all trained by one pass over the data.

The protocol of MAE (He et al. 2022, appendix A.1): BatchNorm without affine parameters, then a linear layer. Batch
statistics do not depend on the classifiers, so one normalisation serves the whole sweep.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from mim_jax.errors import ConfigError
from mim_jax.layers.batch_norm import Statistics, initial_statistics, normalize, normalize_batch

_DECAYED = {"kernel": True, "bias": False}  # as in MAE's LARS, biases know neither weight decay nor trust ratio


@struct.dataclass
class SweepState:
    """Everything a sweep of `L` classifiers holds; a pytree."""

    params: dict[str, jax.Array]  # kernel [L, D, C], bias [L, C]
    moments: Any  # the optimiser's state, with a leading axis L
    statistics: Statistics  # running mean and variance of the features, [D] each
    step: jax.Array  # updates made, int32 []


@dataclasses.dataclass(frozen=True)
class LinearSweep:
    """`L = len(rates)` linear classifiers that differ in their peak learning rate alone. All functions are pure."""

    direction: optax.GradientTransformation  # the optimiser without its learning rate; see `make_direction`
    rates: tuple[float, ...]  # absolute peak learning rates
    total_steps: int
    warmup_steps: int

    def init(self, rng: jax.Array, width: int, num_classes: int) -> SweepState:
        """Fresh classifiers: kernels normal of deviation 0.01, the same for every rate; biases 0."""
        kernel = 0.01 * jax.random.normal(rng, (width, num_classes), jnp.float32)
        heads = len(self.rates)
        params = {
            "kernel": jnp.broadcast_to(kernel[None], (heads, width, num_classes)),
            "bias": jnp.zeros((heads, num_classes), jnp.float32),
        }
        return SweepState(
            params=params,
            moments=jax.vmap(self.direction.init)(params),
            statistics=initial_statistics(width),
            step=jnp.zeros((), jnp.int32),
        )

    def update(self, state: SweepState, features: jax.Array, labels: jax.Array) -> tuple[SweepState, jax.Array]:
        """One step of every classifier on `features [B, D]` and `labels [B]`: the new state and the losses `[L]`."""
        normalized, statistics = normalize_batch(features.astype(jnp.float32), state.statistics)

        def loss(params: dict[str, jax.Array]) -> jax.Array:
            logits = normalized @ params["kernel"] + params["bias"][None]
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def update(params: dict[str, jax.Array], moments: Any, rate: jax.Array) -> tuple[Any, Any, jax.Array]:
            value, gradient = jax.value_and_grad(loss)(params)
            direction, moments = self.direction.update(gradient, moments, params)
            return jax.tree.map(lambda p, d: p - rate * d, params, direction), moments, value

        rates = jnp.asarray(self.rates, jnp.float32) * self.schedule(state.step)
        params, moments, losses = jax.vmap(update)(state.params, state.moments, rates)
        return SweepState(params=params, moments=moments, statistics=statistics, step=state.step + 1), losses

    def schedule(self, step: jax.Array) -> jax.Array:
        """Share of the peak rate at update `step` (int32): linear warm-up from 0, then half a cosine to 0."""
        step = step.astype(jnp.float32)
        decay = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        cosine = 0.5 * (1.0 + jnp.cos(math.pi * decay))
        return jnp.where(step < self.warmup_steps, step / max(1, self.warmup_steps), cosine)


def count_correct(state: SweepState, features: jax.Array, labels: jax.Array, valid: jax.Array) -> jax.Array:
    """How many rows of `features [B, D]` with `valid [B]` true each classifier gets right: `[L]` int32."""
    normalized = normalize(features.astype(jnp.float32), state.statistics)
    logits = jnp.einsum("bd,ldc->lbc", normalized, state.params["kernel"]) + state.params["bias"][:, None]
    right = (jnp.argmax(logits, axis=-1) == labels[None]) & valid[None]
    return right.sum(axis=1, dtype=jnp.int32)


def _adam() -> optax.GradientTransformation:
    adam = optax.scale_by_adam()

    def update(*arguments: Any) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
            return adam.update(*arguments)

    return optax.GradientTransformation(adam.init, update)


def make_direction(
    name: str, *, momentum: float, trust_coefficient: float, weight_decay: float
) -> optax.GradientTransformation:
    """What the learning rate multiplies: "lars" as MAE's probe has it, or "adamw".

    LARS: kernels get `g <- (g + wd * p) * trust_coefficient * |p| / |g + wd * p|` (factor 1 where a norm is 0); then
    `mu <- momentum * mu + g` for all, and `mu` is the direction.

    Raises:
      ConfigError: there is no such optimiser.
    """
    decay = optax.masked(optax.add_decayed_weights(weight_decay), _DECAYED)
    trust = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient), _DECAYED)
    directions = {
        "lars": optax.chain(decay, trust, optax.trace(momentum)),
        "adamw": optax.chain(_adam(), decay),
    }
    if name not in directions:
        raise ConfigError(f"evaluation.linear.optimizer is {name!r}; choose one of {', '.join(directions)}.")
    return directions[name]
