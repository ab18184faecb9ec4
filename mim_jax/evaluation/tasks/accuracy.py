"""`accuracy`: how often a trained classifier is right on the evaluation split."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mim_jax.contract import Variables
from mim_jax.errors import ConfigError
from mim_jax.evaluation.bench import Bench, Snapshot
from mim_jax.evaluation.task import Result, Task


class Accuracy(Task):
    """`top1` and, from six classes on, `top5` in percent, of objectives that have `predict(variables, images)`."""

    def __init__(self, bench: Bench):
        super().__init__(bench)
        if not hasattr(bench.objective, "predict"):
            raise ConfigError(
                f"evaluation task 'accuracy' needs an objective that classifies, and {type(bench.objective).__name__} "
                "does not; use 'knn' or 'linear' for its features."
            )
        bench.require_eval_split(self.name())
        bench.require_classes(self.name())
        images = bench.objective.batch_spec()["image"]
        classes = jax.eval_shape(bench.objective.predict, bench.variable_shapes, images).shape[-1]
        self._ranks = {f"top{k}": k for k in (1, 5) if k < classes}
        self._count = jax.jit(self._count_right, out_shardings=bench.place.whole)

    def run(self, snapshot: Snapshot) -> Result:
        """See `Task.run`."""
        bench, total = self.bench, {}
        with bench.progress(bench.split_size("eval"), "accuracy on the eval split") as advance:
            for batch in bench.batches("eval"):
                used = {key: batch[key] for key in ("image", "label", "valid")}
                counts = jax.device_get(self._count(snapshot.variables, bench.place.put(used)))
                total = {key: total.get(key, 0) + int(value) for key, value in counts.items()}
                advance(int(counts["valid"]))
        valid = total.pop("valid")
        return Result(
            metrics={name: 100.0 * count / valid for name, count in total.items()},
            complete=valid == bench.split_size("eval"),
            details={"eval_examples": valid},
        )

    def _count_right(self, variables: Variables, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        logits = self.bench.objective.predict(variables, batch["image"])
        _, best = jax.lax.top_k(logits, max(self._ranks.values()))
        hit = (best == batch["label"][:, None]) & batch["valid"][:, None]
        counts = {name: hit[:, :k].sum(dtype=jnp.int32) for name, k in self._ranks.items()}
        return {**counts, "valid": batch["valid"].sum(dtype=jnp.int32)}
