"""One optimiser update as a pure function of state and batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mim_jax.contract import Batch, Clock, Objective, Variables
from mim_jax.training.optimizer import Rates
from mim_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
# A gradient norm is called a spike against the mean of about the last 50 updates, once there were 20.
_TYPICAL_SPAN, _TYPICAL_AFTER = 50, 20
StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    rates: Rates,
    *,
    seed: int,
    total_steps: int,
    steps_per_epoch: float,
    accumulation_steps: int = 1,
    spike_factor: float | None = None,
    log_every: int = 1,
) -> StepFunction:
    """The training step: loss and gradients, optimiser, the objective's own update.

    An update whose loss or gradient norm is not finite, or whose gradient norm exceeds `spike_factor` times its running
    mean, leaves variables and optimiser state as they are, and counts. Metrics are float32 scalars:
    `loss`, `terms/*`, `metrics/*`, `lr`, `weight_decay`, `grad_norm`, `update_norm`, `param_norm`, `skipped`, and for
    the loop `finite`, `spike`, `typical_grad_norm` and `consecutive_skipped`. `update_norm` and `param_norm` are NaN
    after updates that are not logged, which are those whose number from 1 neither `log_every` divides nor is the last.
    """

    def logged(number: jax.Array) -> jax.Array | bool:
        return log_every == 1 or (number % log_every == 0) | (number == total_steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        clock = Clock.at(state.step, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        loss, scalars, new_state, grads = _gradients(objective, state.variables, batch, rng, clock, accumulation_steps)
        params = state.variables["params"]
        updates, opt_state = optimizer.update(grads, state.opt_state, params, step=state.step)
        variables = {**state.variables, "params": optax.apply_updates(params, updates)}
        if new_state is not None:
            variables["state"] = new_state
        variables = objective.update(variables, clock)

        grad_norm = optax.tree.norm(grads)
        # Not the update's norm as well: what is applied would have to wait until all of it is computed.
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        spike = finite & _is_spike(state, grad_norm, spike_factor)
        new = _next_state(state, variables, opt_state, grad_norm, finite & ~spike)
        norms = _norms_if(
            logged(state.step + 1),
            lambda: {
                "update_norm": optimizer.update(grads, state.opt_state, params, step=state.step)[0],
                "param_norm": params,
            },
        )
        metrics = {
            "loss": loss,
            **scalars,
            "lr": rates.learning_rate(state.step),
            "weight_decay": rates.weight_decay(state.step),
            "grad_norm": grad_norm,
            **norms,
            "finite": finite,
            "spike": spike,
            "typical_grad_norm": state.typical_grad_norm,
            "consecutive_skipped": new.consecutive_skipped,
            "skipped": new.skipped,
        }
        return new, metrics

    return train_step


def _norms_if(wanted: jax.Array | bool, make_trees: Callable[[], dict[str, Any]]) -> Metrics:
    """The norms of the trees, or NaN.

    To apply an update, the compiler computes it on the way; its norm would have it written to memory and read again,
    with that of the parameters a twentieth of a ViT-B's step on a CPU. So the logged ones are computed twice.
    """

    def norms() -> Metrics:
        return {name: optax.tree.norm(tree) for name, tree in make_trees().items()}

    if wanted is True:
        return norms()
    shapes = jax.eval_shape(norms)
    return jax.lax.cond(wanted, norms, lambda: jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes))


def _is_spike(state: TrainState, grad_norm: jax.Array, spike_factor: float | None) -> jax.Array:
    if spike_factor is None:
        return jnp.zeros((), jnp.bool_)
    made = state.step - state.skipped
    return (made >= _TYPICAL_AFTER) & (grad_norm > spike_factor * state.typical_grad_norm)


def _next_state(
    state: TrainState, variables: Variables, opt_state: Any, grad_norm: jax.Array, sound: jax.Array
) -> TrainState:
    """The state after an update, which is made only if it is `sound` and counted in any case."""
    variables, opt_state = jax.tree.map(
        lambda new, old: jnp.where(sound, new, old), (variables, opt_state), (state.variables, state.opt_state)
    )
    bad = (~sound).astype(jnp.int32)
    made = (state.step - state.skipped).astype(jnp.float32)
    share = 1.0 / jnp.minimum(made + 1.0, _TYPICAL_SPAN)
    typical = state.typical_grad_norm + share * (grad_norm - state.typical_grad_norm)
    return TrainState(
        step=state.step + 1,
        variables=variables,
        opt_state=opt_state,
        skipped=state.skipped + bad,
        consecutive_skipped=(state.consecutive_skipped + bad) * bad,
        typical_grad_norm=jnp.where(sound, typical, state.typical_grad_norm),
    )


def _gradients(
    objective: Objective, variables: Variables, batch: Batch, rng: jax.Array, clock: Clock, accumulation_steps: int
) -> tuple[jax.Array, Metrics, Any, Any]:
    """Loss, its terms and metrics by log name, new method state (or None), gradients; averaged over micro-batches."""
    mask_rng, loss_rng = jax.random.split(rng)
    batch = objective.prepare(variables, batch)
    # Masks are drawn for the whole batch, so that accumulation does not change what is hidden.
    masks = objective.masks(variables, batch, mask_rng, clock)
    has_state = "state" in variables

    def loss_function(params, method_state, micro_batch, micro_masks, micro_rng):
        current = {**variables, "params": params}
        if has_state:
            current["state"] = method_state
        loss, aux = objective.loss(current, micro_batch, micro_masks, micro_rng, clock)
        scalars = {f"{kind}/{k}": v for kind in ("terms", "metrics") for k, v in aux.get(kind, {}).items()}
        return loss, (scalars, aux["state"] if has_state else None)

    gradient = jax.value_and_grad(loss_function, has_aux=True)
    params, method_state = variables["params"], variables.get("state")
    if accumulation_steps == 1:
        (loss, (scalars, new_state)), grads = gradient(params, method_state, batch, masks, loss_rng)
        return loss, scalars, new_state, grads

    def split(x):
        # Every micro-batch takes every accumulation_steps-th example, so each device keeps to its own rows.
        return jnp.swapaxes(x.reshape(x.shape[0] // accumulation_steps, accumulation_steps, *x.shape[1:]), 0, 1)

    def accumulate(carry, inputs):
        method_state, total = carry
        micro_batch, micro_masks, index = inputs
        micro_rng = jax.random.fold_in(loss_rng, index)
        (loss, (scalars, method_state)), grads = gradient(params, method_state, micro_batch, micro_masks, micro_rng)
        return (method_state, jax.tree.map(jnp.add, total, (loss, scalars, grads))), None

    micro = jax.tree.map(split, (dict(batch), masks))
    shapes = jax.eval_shape(gradient, params, method_state, *jax.tree.map(lambda x: x[0], micro), loss_rng)
    (loss_shape, (scalars_shape, _)), grads_shape = shapes
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (loss_shape, scalars_shape, grads_shape))
    indices = jnp.arange(accumulation_steps, dtype=jnp.int32)
    (new_state, total), _ = jax.lax.scan(accumulate, (method_state, zeros), (*micro, indices))
    loss, scalars, grads = jax.tree.map(lambda x: x / accumulation_steps, total)
    return loss, scalars, new_state, grads
