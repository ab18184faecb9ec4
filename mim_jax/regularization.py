"""Regularisers on any method: what the section `regularizer` switches on is added to the method's own loss.

No method knows of it. It needs the features of the training forward pass, which a method's `aux` holds.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Masks, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.regularizers import ldreg


def default_config() -> ConfigDict:
    """The `regularizer` section, everything switched off."""
    return ConfigDict(dict(ldreg=ldreg.default_config()))


def regularized(method: type[Objective], section: ConfigDict) -> type[Objective]:
    """`method`, or a subclass with the regularisers that are switched on; see `RegularizedObjective`.

    Raises:
      ConfigError: a value of the section is unknown or out of range.
    """
    ldreg.check_config(section.ldreg)
    return _subclass(method) if section.ldreg.weight > 0.0 else method


class RegularizedObjective(Objective):
    """Comes before a method's class among the bases of a subclass, and adds to its loss; all else is the method's.

    LDReg's term is the mean over the samples of the batch that `loss` is given: the global one however it is sharded,
    but with `accumulation_steps` the micro-batch, among which its neighbours are sought.
    """

    def loss(self, variables: Variables, batch: Batch, masks: Masks, rng: jax.Array, clock: Clock):
        """The method's loss plus `weight * aux["terms"]["ldreg"]`; `aux["metrics"]["lid"]` is the mean LID."""
        loss, aux = super().loss(variables, batch, masks, rng, clock)
        section = self.config.regularizer.ldreg
        features = pooled_features(aux, self.config)
        k = ldreg.num_neighbors(section.k, features.shape[0], section.local_batch)
        dimensions = ldreg.local_dimensions(features, features, k, section.estimator)
        term = ldreg.penalty(dimensions, section.sign)
        weight = jnp.where(clock.epoch < section.warmup_epochs, 0.0, section.weight)
        terms = {**aux["terms"], "ldreg": term}
        metrics = {**aux.get("metrics", {}), "lid": ldreg.mean_over_defined(dimensions, dimensions)}
        return loss + weight * term, {**aux, "terms": terms, "metrics": metrics}

    def stage(self, progress: float) -> Objective:
        """The method's stage, regularised as well; always the same object for the same stage."""
        stage = super().stage(progress)
        if isinstance(stage, RegularizedObjective):
            return stage
        known = self.__dict__.setdefault("_regularized_stages", {})
        if stage not in known:
            known[stage] = copy.copy(stage)
            known[stage].__class__ = _subclass(type(stage))
        return known[stage]


def pooled_features(aux: Mapping[str, Any], config: ConfigDict) -> jax.Array:
    """One feature for every encoded sequence of a training forward pass, `[B, D]`.

    `aux["pooled"]` where the method gives it; else of `aux["latent"] [B, (1 +) K, D]` the class token, or the mean over
    tokens where the model has none. A method with several sequences for each image has as many rows, those of a tuple
    of latents one after the other.

    Raises:
      ConfigError: the method's `aux` has neither in this form.
    """
    pooled, latents = aux.get("pooled"), aux.get("latent", ())
    latents = latents if isinstance(latents, tuple) else (latents,)
    if pooled is None and latents and all(latent.ndim == 3 for latent in latents):
        pooled = jnp.concatenate([_pool(latent, config.model.class_token) for latent in latents])
    if pooled is None or pooled.ndim != 2:
        raise ConfigError(
            f"regularizer.ldreg.weight is {config.regularizer.ldreg.weight}, but with these settings {config.method!r} "
            "has no features for it (aux['pooled'] [B, D] or aux['latent'] [B, K, D]); set it to 0."
        )
    return pooled


def _pool(latent: jax.Array, class_token: bool) -> jax.Array:
    return latent[:, 0] if class_token else latent.astype(jnp.float32).mean(axis=1)


@functools.cache
def _subclass(method: type[Objective]) -> type[Objective]:
    """One class for each method, under the method's name."""
    names = {name: getattr(method, name) for name in ("__doc__", "__module__")}
    return type(method.__name__, (RegularizedObjective, method), names)
