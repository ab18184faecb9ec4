"""`statistics`: numbers that show a collapsing representation."""

from __future__ import annotations

from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.evaluation.bench import Bench, Snapshot
from mim_jax.evaluation.statistics import representation_statistics
from mim_jax.evaluation.task import Result, Task
from mim_jax.fields import optional


class RepresentationStatistics(Task):
    """`feature_std`, `effective_rank` and `mean_cosine` of the evaluation split, or the training split without one."""

    @classmethod
    def default_config(cls) -> ConfigDict:
        """At most 10,000 random images."""
        return ConfigDict(
            dict(
                feature="pooled",  # "pooled", "tokens_mean", or another [B, D] output of encode
                max_examples=optional(int, 10_000),  # random images to use; None: all of the split
            )
        )

    def __init__(self, bench: Bench):
        super().__init__(bench)
        bench.feature_width(self.settings.feature)
        self._split = bench.viewing_split
        limit = self.settings.max_examples
        if min(bench.split_size(self._split), 2 if limit is None else limit) < 2:
            raise ConfigError(
                f"evaluation.statistics.max_examples is {limit} and the split has {bench.split_size(self._split)} "
                "images; statistics need at least two."
            )
        self._chosen = bench.subset(self._split, limit)

    def run(self, snapshot: Snapshot) -> Result:
        """See `Task.run`."""
        found = snapshot.features(self._split, self.settings.feature, self._chosen)
        return Result(
            metrics=representation_statistics(found.features),
            complete=len(found) == self.bench.split_size(self._split),
            details={"examples": len(found)},
        )
