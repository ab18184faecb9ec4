"""`knn`: classifies evaluation images by the labels of the nearest training images (the protocol of DINO)."""

from __future__ import annotations

from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.evaluation.bench import Bench, Snapshot
from mim_jax.evaluation.knn import knn_accuracy
from mim_jax.evaluation.task import Result, Task
from mim_jax.fields import optional


class KNN(Task):
    """Top-1 accuracy in percent, `top1_k<k>` for every `k`; both splits under the evaluation transform."""

    @classmethod
    def default_config(cls) -> ConfigDict:
        """The conventional k = 20 on all training images."""
        return ConfigDict(
            dict(
                k=(20,),  # numbers of neighbours; the protocol reports 10, 20, 100 and 200
                temperature=0.07,  # of a neighbour's vote, exp(cosine similarity / temperature)
                feature="pooled",  # "pooled", "tokens_mean", or another [B, D] output of encode
                max_train_examples=optional(int),  # random training images to search in; None: all of them
            )
        )

    def __init__(self, bench: Bench):
        super().__init__(bench)
        bench.require_eval_split(self.name())
        self._num_classes = bench.require_classes(self.name())
        bench.feature_width(self.settings.feature)
        self._chosen = bench.subset("train", self.settings.max_train_examples)
        size = bench.split_size("train") if self._chosen is None else len(self._chosen)
        ks = self.settings.k
        if not ks or not all(isinstance(k, int) and 1 <= k <= size for k in ks):
            raise ConfigError(f"evaluation.knn.k is {ks}; every k must lie between 1 and the {size} training images.")
        if self.settings.temperature <= 0.0:
            raise ConfigError(f"evaluation.knn.temperature is {self.settings.temperature}; it must be positive.")

    def run(self, snapshot: Snapshot) -> Result:
        """See `Task.run`."""
        settings, bench = self.settings, self.bench
        bank = snapshot.features("train", settings.feature, self._chosen)
        queries = snapshot.features("eval", settings.feature)
        accuracy = knn_accuracy(
            bank.features,
            bank.labels,
            queries.features,
            queries.labels,
            ks=tuple(settings.k),
            temperature=settings.temperature,
            num_classes=self._num_classes,
            mesh=bench.mesh,
        )
        return Result(
            metrics={f"top1_k{k}": value for k, value in accuracy.items()},
            complete=len(bank) == bench.split_size("train") and len(queries) == bench.split_size("eval"),
            details={"train_examples": len(bank), "eval_examples": len(queries)},
        )
