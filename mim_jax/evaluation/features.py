"""Features of a whole split: the encoder over sharded batches, every example exactly once."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mim_jax.contract import Objective, Variables
from mim_jax.errors import ConfigError, DataError
from mim_jax.evaluation.placement import Placement

_IN_FLIGHT = 2  # batches the devices may be behind the host; more would only hold memory

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features of the readable examples of a split, in the split's order; whole on the host of every process."""

    features: np.ndarray  # [N, D] float32
    labels: np.ndarray | None  # [N] int32; None: unlabelled
    indices: np.ndarray  # [N] int32, rising

    def __len__(self) -> int:
        return len(self.features)

    def take(self, indices: np.ndarray) -> FeatureSet:
        """The examples numbered `indices [n]` (rising), as far as they are readable."""
        rows = np.flatnonzero(np.isin(self.indices, indices))
        return FeatureSet(self.features[rows], None if self.labels is None else self.labels[rows], self.indices[rows])


class FeatureExtractor:
    """Runs an objective's `encode` over batches; holds the compiled function, so that later calls compile nothing."""

    def __init__(self, objective: Objective, mesh: Mesh):
        self.place = Placement(mesh)
        self._objective = objective
        # Whole on every device: each process can then read all rows, its own and the others'.
        self._encode = jax.jit(self._forward, static_argnames="feature", out_shardings=self.place.whole)

    def __call__(
        self,
        variables: Variables,
        batches: Iterable[Batch],
        feature: str = "pooled",
        *,
        advance: Callable[[int], object] = lambda examples: None,
    ) -> FeatureSet:
        """Features of every valid example of `batches`.

        Args:
          variables: of the objective, on the devices of the mesh or on none in particular.
          batches: this process's slices of global batches as `mim_jax.data.eval_batches` yields them: `image`, `valid`,
            `index` and, where known, `label`. All processes must have equally many.
          feature: "tokens_mean", or the name of a `[B, D]` output of `encode`.
          advance: called with the number of examples of each batch that is done, for a progress bar.

        Raises:
          DataError: an example came twice, or none at all.
        """
        pending: collections.deque = collections.deque()
        done: list[dict[str, np.ndarray]] = []

        def collect() -> None:
            rows = jax.device_get(pending.popleft())
            done.append({key: value[rows["valid"]] for key, value in rows.items() if key != "valid"})
            advance(int(rows["valid"].sum()))

        for batch in batches:
            pending.append(self._encode(variables, self._put(batch), feature=feature))
            if len(pending) > _IN_FLIGHT:
                collect()
        while pending:
            collect()
        return _ordered(done)

    def _put(self, batch: Batch) -> dict[str, jax.Array]:
        wanted = {key: batch[key] for key in ("image", "valid", "label") if key in batch}
        return self.place.put({**wanted, "index": np.asarray(batch["index"]).astype(np.int32)})

    def _forward(self, variables: Variables, batch: dict[str, jax.Array], feature: str) -> dict[str, jax.Array]:
        encoded = self._objective.encode(variables, batch["image"])
        rest = {key: value for key, value in batch.items() if key != "image"}
        return {"features": select_feature(encoded, feature).astype(jnp.float32), **rest}


def select_feature(encoded: Mapping[str, jax.Array], feature: str) -> jax.Array:
    """One vector per image, `[B, D]`, of what `encode` returns: a `[B, D]` entry by name, or "tokens_mean".

    Raises:
      ConfigError: there is no such feature; the message names those that exist.
    """
    if feature == "tokens_mean":
        return encoded["tokens"].mean(axis=1)
    if feature not in encoded or encoded[feature].ndim != 2:
        known = ["tokens_mean", *(name for name, value in encoded.items() if value.ndim == 2)]
        raise ConfigError(
            f"There is no feature {feature!r}; set the evaluation's `feature` to one of {', '.join(known)}."
        )
    return encoded[feature]


def _ordered(batches: list[dict[str, np.ndarray]]) -> FeatureSet:
    if not any(len(batch["index"]) for batch in batches):
        raise DataError("There is no readable example to evaluate on; check data.source and its splits.")
    rows = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    order = np.argsort(rows["index"], kind="stable")
    indices = rows["index"][order]
    if (np.diff(indices) == 0).any():
        raise DataError("An evaluation stream delivered an example twice; every one must come exactly once.")
    return FeatureSet(rows["features"][order], rows["label"][order] if "label" in rows else None, indices)
