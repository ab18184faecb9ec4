"""`coding_rate`: whether the encoder's layers compress and sparsify the tokens, one after the other."""

from __future__ import annotations

import jax
import numpy as np
from ml_collections import ConfigDict

from mim_jax.contract import Variables
from mim_jax.errors import ConfigError, DataError
from mim_jax.evaluation.bench import Bench, Snapshot
from mim_jax.evaluation.coding_rate import layer_statistics, layer_tokens
from mim_jax.evaluation.task import Result, Task
from mim_jax.models.crate import Crate
from mim_jax.models.vit import ViT

_CHUNK = 16  # images at a time: every layer's tokens of all of them are in memory at once


class CodingRate(Task):
    """`compression_<layer>`, `rate_<layer>` and `nonzero_<layer>` for every layer from 01, averaged over images.

    See `layer_statistics`. Images are of the evaluation split, or the training split without one; their standard
    deviations are among the details. `tools/plot_layers.py` draws them.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """256 random images at the distortion of the official figures."""
        return ConfigDict(
            dict(
                num_images=256,  # random images of the split, or all if there are fewer
                epsilon=0.1,  # the distortion; larger ones do not see small differences between tokens
            )
        )

    def __init__(self, bench: Bench):
        super().__init__(bench)
        self._encoder = getattr(bench.objective, "encoder", None)
        if not isinstance(self._encoder, Crate | ViT):
            raise ConfigError(
                f"evaluation task 'coding_rate' looks into the blocks of a 'crate' or 'vit', which "
                f"{type(bench.objective).__name__} with model.backbone {bench.config.model.backbone!r} does not have; "
                "remove it from evaluation.tasks."
            )
        for key in ("num_images", "epsilon"):
            if not self.settings[key] > 0:
                raise ConfigError(f"evaluation.coding_rate.{key} is {self.settings[key]}; it must be positive.")
        size = bench.split_size(bench.viewing_split)
        chosen = bench.subset(bench.viewing_split, self.settings.num_images)
        self._chosen = np.arange(size) if chosen is None else chosen
        self._layers = jax.jit(self._layer_tokens, out_shardings=bench.place.whole)

    def run(self, snapshot: Snapshot) -> Result:
        """See `Task.run`."""
        place, chunk = self.bench.place, self.bench.place.multiple(_CHUNK)
        parts = []
        with self.bench.progress(len(self._chosen), "coding rate of every layer") as advance:
            for start in range(0, len(self._chosen), chunk):
                batch = self.bench.examples(self.bench.viewing_split, self._chosen[start : start + chunk])
                images = place.split(place.pad(batch["image"], chunk))
                found = layer_statistics(
                    jax.device_get(self._layers(snapshot.variables, images)), self.settings.epsilon
                )
                readable = np.flatnonzero(batch["valid"])
                parts.append({name: values[:, readable] for name, values in found.items()})
                advance(len(readable))
        measured = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
        number = measured["rate"].shape[1]
        if not number:
            raise DataError("There is no readable image to measure coding rates on; check data.source and its splits.")
        return Result(
            metrics={
                f"{name}_{layer:02d}": float(mean)
                for name, values in measured.items()
                for layer, mean in enumerate(values.mean(axis=1), 1)
            },
            complete=number == self.bench.split_size(self.bench.viewing_split),
            details={"images": number, **{f"{name}_std": v.std(axis=1).tolist() for name, v in measured.items()}},
        )

    def _layer_tokens(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        return layer_tokens(self._encoder, self.bench.objective.evaluated(variables)["encoder"], images)
