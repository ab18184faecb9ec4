"""LDReg: "LDReg: Local Dimensionality Regularized Self-Supervised Learning", Huang et al., ICLR 2024, arXiv 2401.10474.

The local intrinsic dimension (LID) of a sample's feature is estimated from the distances to its nearest neighbours in
the batch, and its geometric mean is maximised: `weight * mean(-ln LID)` is added to a loss.

Distances between close points are lost where features are rounded to bfloat16, or where the square is taken apart into
`|x|^2 + |y|^2 - 2 x.y`. Here differences are taken, in float32, which for a batch of n samples of D dimensions costs
n * n * D multiplications, and the memory of n * n and n * k * D numbers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.layers.placement import split_over_batch

EPSILON = 1e-4
_MIN_ROWS = 4  # two neighbours besides the sample itself and the one that the official code leaves out


def default_config() -> ConfigDict:
    """The `regularizer.ldreg` section, switched off."""
    return ConfigDict(
        dict(
            weight=0.0,  # alpha; 0: off. The official code's: 5e-6 for MAE, 0.01 for SimCLR, 0.005 for BYOL and MoCo
            k=64,  # neighbours of each sample; of n samples at most n - 2
            estimator="mom",  # method of moments; "mom_epsilon", finite among duplicates; "mle", maximum likelihood
            # What is minimised: -|ln LID| ("absolute", the official code's), which drives a LID that is below 1 further
            # down, or -ln LID ("signed", the official README's). Above 1 they are the same.
            sign="absolute",
            warmup_epochs=10.0,  # during which the term is only logged
            # n in the bound of k. The official code compares a device's samples with those of all devices and takes
            # the device's number; None: all samples of the batch.
            local_batch=optional(int),
        )
    )


def check_config(section: ConfigDict) -> None:
    """Raises ConfigError for a value of `regularizer.ldreg` that is unknown or out of range."""
    prefix = "regularizer.ldreg"
    if section.weight < 0.0:
        raise ConfigError(f"{prefix}.weight is {section.weight}; it must not be negative (0 switches the term off).")
    if section.k < 2:
        raise ConfigError(f"{prefix}.k is {section.k}; an estimate needs at least 2 neighbours.")
    if section.estimator not in _ESTIMATORS:
        raise ConfigError(f"{prefix}.estimator is {section.estimator!r}; choose one of {', '.join(_ESTIMATORS)}.")
    if section.sign not in ("absolute", "signed"):
        raise ConfigError(f"{prefix}.sign is {section.sign!r}; choose 'absolute' or 'signed'.")
    if section.local_batch is not None and section.local_batch < _MIN_ROWS:
        raise ConfigError(f"{prefix}.local_batch is {section.local_batch}; it must be at least {_MIN_ROWS}.")


def num_neighbors(k: int, rows: int, local_batch: int | None = None) -> int:
    """`min(k, n - 2)`, where n is the number of rows, or `local_batch` if that is less.

    Raises:
      ConfigError: there are too few rows for an estimate.
    """
    if rows < _MIN_ROWS:
        raise ConfigError(
            f"regularizer.ldreg estimates dimensions from neighbours in a batch, and {rows} samples are too few; use "
            f"(micro-)batches of at least {_MIN_ROWS}, or set regularizer.ldreg.weight=0."
        )
    return min(k, (rows if local_batch is None else min(rows, local_batch)) - 2)


def neighbor_distances(features: jax.Array, reference: jax.Array, k: int) -> jax.Array:
    """Euclidean distances to the `k` nearest rows of the reference after the very nearest, which is the row itself.

    Where a distance is 0 so is its gradient, as PyTorch has it; the derivative of the root would be infinite.

    Args:
      features: `[n, D]`, rows of the reference.
      reference: `[m, D]`.
      k: at most `m - 1`.

    Returns:
      `[n, k]` float32, ascending.
    """
    features, reference = features.astype(jnp.float32), reference.astype(jnp.float32)
    nearest = jax.lax.stop_gradient(_squared_distances(features, reference[None]))
    _, nearest = jax.lax.top_k(-split_over_batch(nearest), k + 1)
    # Once more, since a gradient through all pairs would have all their differences in memory.
    squared = _squared_distances(features, reference[nearest[:, 1:]])
    apart = squared > 0.0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


def method_of_moments(distances: jax.Array, epsilon: float = 0.0) -> jax.Array:
    """`mu / (a_k - mu + epsilon)` where `mu` is the mean of all but the last of the distances `[n, k]`: LIDs `[n]`.

    Infinite where the denominator is not positive, as for neighbours that are all equally far.
    """
    mean = distances[:, :-1].mean(axis=1)
    return _positive_ratio(mean, distances[:, -1] - mean + epsilon)


def maximum_likelihood(distances: jax.Array) -> jax.Array:
    """`-k / sum_j ln(a_j / a_k + 1e-4)`, the sum over all but the last of the distances `[n, k]`: LIDs `[n]`.

    It is k over a sum of k - 1 logarithms, as in the official code. Infinite where the sum is not negative.
    """
    farthest = distances[:, -1]
    ratios = distances[:, :-1] / jnp.where(farthest > 0.0, farthest, 1.0)[:, None]
    total = jnp.log(ratios + EPSILON).sum(axis=1)
    count = jnp.full(total.shape, distances.shape[1], jnp.float32)
    return _positive_ratio(count, jnp.where(farthest > 0.0, -total, 0.0))


def local_dimensions(features: jax.Array, reference: jax.Array, k: int, estimator: str = "mom") -> jax.Array:
    """The LID of every row of `features [n, D]` among the rows of `reference [m, D]`, `[n]`; see `neighbor_distances`.

    The reference gets no gradient: a sample is moved among neighbours that stay where they are.
    """
    return _ESTIMATORS[estimator](neighbor_distances(features, jax.lax.stop_gradient(reference), k))


def mean_over_defined(values: jax.Array, dimensions: jax.Array) -> jax.Array:
    """The mean of `values [n]` over the samples whose LID `[n]` is positive and finite; 0 if there are none."""
    defined = is_defined(dimensions)
    return jnp.where(defined, values, 0.0).sum() / jnp.maximum(defined.sum(), 1).astype(jnp.float32)


def is_defined(dimensions: jax.Array) -> jax.Array:
    """Whether each LID is positive and finite, which among many duplicates it is not: `[n]` bool."""
    return (dimensions > 0.0) & jnp.isfinite(dimensions)


def penalty(dimensions: jax.Array, sign: str = "absolute") -> jax.Array:
    """The mean of `-|ln LID|` ("absolute") or `-ln LID` ("signed") over the samples that have one.

    The official code takes the mean over all, which is infinite or NaN, gradient included, where one sample has none.
    """
    log = jnp.log(jnp.where(is_defined(dimensions), dimensions, 1.0))
    return mean_over_defined(-jnp.abs(log) if sign == "absolute" else -log, dimensions)


def _squared_distances(features: jax.Array, others: jax.Array) -> jax.Array:
    """Between `features [n, D]` and `others [n or 1, m, D]`: `[n, m]`."""
    return jnp.square(features[:, None] - others).sum(axis=-1)


def _positive_ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    # Twice, so that the gradient of what is not chosen is 0 and not NaN.
    positive = denominator > 0.0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1.0), jnp.inf)


def _moments_with_epsilon(distances: jax.Array) -> jax.Array:
    return method_of_moments(distances, EPSILON)


_ESTIMATORS = {"mom": method_of_moments, "mom_epsilon": _moments_with_epsilon, "mle": maximum_likelihood}
