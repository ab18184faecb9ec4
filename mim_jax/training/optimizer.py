"""Optimisers as optax chains whose schedules are functions of the training step.

The step is passed to `update`, so no schedule keeps a counter of its own that could drift from the training state's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax import contrib

from mim_jax.errors import ConfigError
from mim_jax.training.paths import LAYERED, STACKED, map_with_name, matches
from mim_jax.training.schedules import Schedule

# Parts of an encoder that precede its blocks: layer 0 of the layer-wise decay.
_EMBEDDING = re.compile(r"^encoder/(patch_embed|stem|position|class_token|mask_token)(/|$)")


@dataclasses.dataclass(frozen=True)
class Rates:
    """The schedules an optimiser follows."""

    learning_rate: Schedule
    weight_decay: Schedule


def make_optimizer(
    config: ConfigDict, params: Any, rates: Rates, encoder: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Clipping, the named optimiser's direction, decoupled weight decay, and the (layer-wise) learning rate.

    `update` needs `step=` (int32 scalar). `params` may be abstract. `encoder`: see `layer_scales`.

    Raises:
      ConfigError: unknown optimiser, or a pattern that matches no parameter.
    """
    optimizer = config.optimizer
    if optimizer.name not in _DIRECTIONS:
        raise ConfigError(f"optimizer.name is {optimizer.name!r}; choose one of {', '.join(_DIRECTIONS)}.")
    decayed = jax.tree.map(lambda x: not x, matches(params, optimizer.no_decay, "optimizer.no_decay"))
    frozen = matches(params, optimizer.frozen, "optimizer.frozen")
    decay = decay_weights(rates.weight_decay, decayed)
    scales = layer_scales(params, optimizer.layer_decay, encoder)
    chain = optax.chain(
        *([] if optimizer.clip_norm is None else [optax.clip_by_global_norm(optimizer.clip_norm)]),
        *_DIRECTIONS[optimizer.name](optimizer, decay, decayed),
        scale_by_rate(rates.learning_rate, scales),
    )
    if optimizer.frozen:
        labels = jax.tree.map(lambda x: "frozen" if x else "trained", frozen)
        chain = optax.partition({"trained": chain, "frozen": optax.set_to_zero()}, labels)
    return _with_standard_promotion(chain)


def decay_weights(weight_decay: Schedule, mask: Any) -> optax.GradientTransformationExtraArgs:
    """Adds `weight_decay(step) * parameter` to the update where `mask` is true."""

    def update(updates, state, params=None, *, step, **extra):
        del extra
        rate = weight_decay(step)
        add = lambda u, p, m: u + rate.astype(u.dtype) * p if m else u  # noqa: E731
        return jax.tree.map(add, updates, params, _like(mask, updates)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def scale_by_rate(learning_rate: Schedule, scales: Any) -> optax.GradientTransformationExtraArgs:
    """Multiplies the update by `-learning_rate(step)` and each parameter's own scale."""

    def update(updates, state, params=None, *, step, **extra):
        del params, extra
        rate = -learning_rate(step)
        scale = lambda u, s: u * (rate * s).astype(u.dtype)  # noqa: E731
        return jax.tree.map(scale, updates, _like(scales, updates)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def layer_scales(params: Any, decay: float, encoder: Any = None) -> Any:
    """Learning rate multipliers `decay^(n - id)`, broadcastable to the parameters (Clark et al. 2020, as in MAE).

    `n = depth + 1`; the encoder's embeddings have id 0, its block i (from 0) id i + 1, everything else id n. An encoder
    that counts otherwise has `num_layers` and `layer_ids(name)`: the id of its parameter of that path, or those of each
    layer of a stacked one; then `n = num_layers + 1`.
    """
    if decay == 1.0:
        return jax.tree.map(lambda _: jnp.ones((), jnp.float32), params)
    if hasattr(encoder, "layer_ids"):
        return map_with_name(lambda name, leaf: _scale_of_stages(name, leaf, decay, encoder), params)
    blocks = {}

    def collect(name, leaf):
        if name.startswith("encoder/") and STACKED in name:
            blocks[name] = leaf.shape[0]

    map_with_name(collect, params)
    if not blocks:
        raise ConfigError("optimizer.layer_decay needs an encoder made of stacked blocks; set it to 1.0.")
    depth = max(blocks.values())

    def scale(name, leaf):
        if name in blocks:
            ids = jnp.arange(1, depth + 1, dtype=jnp.float32).reshape((-1,) + (1,) * (len(leaf.shape) - 1))
        else:
            ids = jnp.asarray(0.0 if _EMBEDDING.match(name) else depth + 1.0, jnp.float32)
        return jnp.power(decay, depth + 1 - ids)

    return map_with_name(scale, params)


def _scale_of_stages(name: str, leaf: Any, decay: float, encoder: Any) -> jax.Array:
    top, (part, _, rest) = encoder.num_layers + 1, name.partition("/")
    ids = jnp.asarray(encoder.layer_ids(rest) if part == "encoder" else top, jnp.float32)
    scales = jnp.power(decay, top - ids)
    return scales.reshape(-1, *(1,) * (len(leaf.shape) - 1)) if scales.ndim else scales


def scale_by_layer_trust_ratio(coefficient: float, mask: Any) -> optax.GradientTransformation:
    """The trust ratio `coefficient * |p| / |u|` (1 where a norm is 0), for each layer of a stacked parameter by itself.

    Applied where `mask` is true: LARS (You et al. 2017, as in MAE's linear probing) and LAMB (You et al. 2020).
    """

    def ratio(name, u, p, m):
        if not m:
            return u
        axes = tuple(range(1 if LAYERED in name else 0, u.ndim))
        norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))  # noqa: E731
        p_norm, u_norm = norm(p), norm(u)
        safe = jnp.where(u_norm > 0.0, u_norm, jnp.ones((), u_norm.dtype))
        return u * jnp.where((p_norm > 0.0) & (u_norm > 0.0), coefficient * p_norm / safe, jnp.ones((), p_norm.dtype))

    def update(updates, state, params=None):
        return map_with_name(ratio, updates, params, _like(mask, updates)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_uncorrected_adam(b1: float, b2: float, eps: float, mu_dtype: Any) -> optax.GradientTransformation:
    """Adam's direction without bias correction, `m / (sqrt(v) + eps)`: short at first, where moments are near zero."""

    def update(updates, state, params=None):
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return direction, state._replace(count=state.count + 1, mu=optax.tree.cast(mu, mu_dtype), nu=nu)

    # The corrected one's state, so that a checkpoint of either is one of both.
    return optax.GradientTransformation(optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype).init, update)


def _with_standard_promotion(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    # optax mixes integers and floats, which JAX refuses where a user (or our tests) asks for strict promotion.
    inner = optax.with_extra_args_support(inner)

    def update(updates, state, params=None, **extra):
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _like(tree: Any, updates: Any) -> Any:
    # Under `optax.partition` the updates lack the frozen leaves.
    is_masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(lambda u, t: u if is_masked(u) else t, updates, tree, is_leaf=is_masked)


def _adamw(optimizer: ConfigDict, decay, decayed):
    del decayed
    dtype = jnp.dtype(optimizer.moment_dtype)
    return optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps, mu_dtype=dtype), decay


def _lamb(optimizer: ConfigDict, decay, decayed):
    dtype = jnp.dtype(optimizer.moment_dtype)
    adam = optax.scale_by_adam if optimizer.bias_correction else scale_by_uncorrected_adam
    adapted = jax.tree.map(lambda _: True, decayed) if optimizer.always_adapt else decayed
    moments = adam(optimizer.b1, optimizer.b2, optimizer.eps, mu_dtype=dtype)
    return moments, decay, scale_by_layer_trust_ratio(1.0, adapted)


def _lion(optimizer: ConfigDict, decay, decayed):
    del decayed
    return optax.scale_by_lion(optimizer.b1, optimizer.b2, mu_dtype=jnp.dtype(optimizer.moment_dtype)), decay


def _sgd(optimizer: ConfigDict, decay, decayed):
    del decayed
    return decay, optax.trace(optimizer.momentum)


def _lars(optimizer: ConfigDict, decay, decayed):
    return decay, scale_by_layer_trust_ratio(optimizer.trust_coefficient, decayed), optax.trace(optimizer.momentum)


def _muon(optimizer: ConfigDict, decay, decayed):
    # optax sends whatever is not 2-D to Adam in silence; stacked attention kernels are 5-D, so their axes are named
    # here.
    del decayed
    transforms = {
        "muon": contrib.scale_by_muon(
            beta=optimizer.momentum, weight_dimension_numbers=lambda tree: map_with_name(_muon_axes, tree)
        ),
        "adam": optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps),
    }
    label = lambda name, _: "muon" if _is_hidden_matrix(name) else "adam"  # noqa: E731
    return optax.partition(transforms, lambda params: map_with_name(label, params)), decay


def _is_hidden_matrix(name: str) -> bool:
    return STACKED in name and name.endswith("kernel")


def _muon_axes(name: str, leaf: Any) -> contrib.MuonDimensionNumbers:
    if name.endswith("qkv/kernel"):  # [L, D, 3, H, Dh]: query, key and value are matrices of their own
        return contrib.MuonDimensionNumbers(reduction_axis=(1,), output_axis=(3, 4))
    if re.search(r"/(query|key|value|subspaces)/kernel$", name):  # [L, D, H, Dh]
        return contrib.MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2, 3))
    last = len(leaf.shape) - 1
    return contrib.MuonDimensionNumbers(reduction_axis=tuple(range(1, last)), output_axis=(last,))


_DIRECTIONS: dict[str, Callable[..., tuple[optax.GradientTransformation, ...]]] = {
    "adamw": _adamw,
    "lamb": _lamb,
    "lars": _lars,
    "lion": _lion,
    "muon": _muon,
    "sgd": _sgd,
}
