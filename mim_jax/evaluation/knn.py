"""Weighted k-nearest-neighbour classification of features (Wu et al. 2018; the protocol of DINO, Caron et al. 2021)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mim_jax.evaluation.placement import Placement

# Similarities computed at once: 2^27 of them are 512 MiB, shared by the devices.
_MAX_SIMILARITIES = 2**27
_MAX_CHUNK = 1024


def normalize(features: jax.Array) -> jax.Array:
    """Rows of `[N, D]` divided by their Euclidean norm, in float32; a zero row stays zero."""
    features = features.astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(jnp.square(features), axis=1, keepdims=True))
    return features / jnp.where(norm > 0.0, norm, jnp.ones((), jnp.float32))


@functools.partial(jax.jit, static_argnames=("ks", "temperature", "num_classes"))
def knn_predict(
    bank: jax.Array,
    bank_labels: jax.Array,
    queries: jax.Array,
    *,
    ks: tuple[int, ...],
    temperature: float,
    num_classes: int,
) -> jax.Array:
    """Classes predicted for `queries [Q, D]` by the nearest rows of `bank [M, D]`: `[len(ks), Q]` int32.

    Each of the `k` nearest rows by cosine similarity votes for its class (`bank_labels [M]`) with weight
    `exp(similarity / temperature)`. Similarities are float32 on every kind of device.
    Equal votes go to the lower class.
    """
    similarity = jnp.dot(normalize(queries), normalize(bank).T, precision=jax.lax.Precision.HIGHEST)
    # Without the barrier XLA merges the slices below into the top-k, no longer knows it for one, and sorts the whole
    # bank: 50 times slower on CPUs.
    nearest, ids = jax.lax.optimization_barrier(jax.lax.top_k(similarity, max(ks)))
    labels = bank_labels[ids]
    # Relative to the nearest one: the same vote, without overflow at low temperatures.
    weights = jnp.exp((nearest - nearest[:, :1]) / temperature)

    def vote(labels: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.zeros(num_classes, jnp.float32).at[labels].add(weights)

    return jnp.stack([jnp.argmax(jax.vmap(vote)(labels[:, :k], weights[:, :k]), axis=1) for k in ks]).astype(jnp.int32)


def knn_accuracy(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    labels: np.ndarray,
    *,
    ks: tuple[int, ...],
    temperature: float,
    num_classes: int,
    mesh: Mesh,
) -> dict[int, float]:
    """Top-1 accuracy in percent for every `k`, on all devices of `mesh` and in bounded memory.

    Args:
      bank, bank_labels: features `[M, D]` and classes `[M]` of the training examples.
      queries, labels: features `[N, D]` and classes `[N]` of the examples to classify.
      ks: numbers of neighbours, none larger than `M`.
      temperature: of the vote.
      num_classes: classes are `0 .. num_classes - 1`.
      mesh: queries are split over its "data" and "fsdp" axes; the bank is on every device.

    Raises:
      ValueError: a `k` is not in `[1, M]`.
    """
    if not ks or min(ks) < 1 or max(ks) > len(bank):
        raise ValueError(f"k-NN needs 1 <= k <= {len(bank)}, the number of training examples, not k = {tuple(ks)}.")
    place = Placement(mesh)
    chunk = place.multiple(min(_MAX_CHUNK, max(1, _MAX_SIMILARITIES // len(bank)), len(queries)))
    bank, bank_labels = place.replicate(bank.astype(np.float32)), place.replicate(bank_labels.astype(np.int32))
    predict = functools.partial(knn_predict, ks=tuple(ks), temperature=temperature, num_classes=num_classes)
    predictions = [
        place.fetch(predict(bank, bank_labels, place.split(place.pad(queries[start : start + chunk], chunk))))
        for start in range(0, len(queries), chunk)
    ]
    predicted = np.concatenate(predictions, axis=1)[:, : len(queries)]
    return {k: 100.0 * float(np.mean(row == labels)) for k, row in zip(ks, predicted, strict=True)}
