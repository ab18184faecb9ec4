"""`zero_shot`: segments what stands out from a plain background, by the similarity of its patches to one of them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mim_jax import data
from mim_jax.contract import Variables
from mim_jax.errors import ConfigError, DataError
from mim_jax.evaluation.bench import Bench, Snapshot
from mim_jax.evaluation.task import Result, Task
from mim_jax.evaluation.zero_shot import (
    different_objects,
    overlap,
    pair_similarities,
    prompt_map,
    same_object,
    threshold_iou,
    upsample,
)
from mim_jax.fields import optional

OBJECT, BACKGROUND, NOTHING = 0, 1, -1


class ZeroShot(Task):
    """Prompted segmentation without training (Wu et al. 2023, arXiv 2308.11448), for images on a plain background.

    No masks are read: the object is what differs from `background` by more than `foreground_threshold`, as garments do
    in Fashion-MNIST. Of photographs that means nothing. A patch belongs to the object if at least half of its pixels
    do; images with no such patch are left out. Patches are the encoder's tokens of the intact image after its last
    norm. Metrics:

    - `iou`, in percent: of the similarity map of a prompted patch, cut at a threshold, with the object; mean over
      prompts, images and `thresholds`.
    - `iou_best`, `threshold_best`: of the one threshold that is best for the whole split, and that threshold. It is
      chosen on the images it is measured on.
    - `iou_everything`: of calling the whole image object; what features of no use reach.
    - `intra`, `inter`: mean cosine of two patches of the object, and of one of it and one of the background.
    - `overlap`: of the histograms of the two, from 0 to 1; the smaller, the better they are told apart.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """At most 1,000 images, eight prompts each."""
        return ConfigDict(
            dict(
                foreground_threshold=0.1,  # of pixels in [0, 1], largest difference of any channel
                background=0.0,  # grey level in [0, 1]: 0 black, 1 white
                prompts=8,  # random patches of the object, with repetition; the same at every step
                thresholds=tuple(round(0.05 * step, 2) for step in range(1, 20)),  # cosines
                bins=100,  # of the histograms from -1 to 1
                max_examples=optional(int, 1000),  # random images to use; None: all of the split
                seed=0,  # of the prompts
            )
        )

    def __init__(self, bench: Bench):
        super().__init__(bench)
        self._check()
        self._split = bench.viewing_split
        self._chosen = bench.subset(self._split, self.settings.max_examples)
        images = bench.objective.batch_spec()["image"]
        tokens = jax.eval_shape(bench.objective.encode, bench.variable_shapes, images)["tokens"]
        self._size, self._grid = images.shape[1:3], _grid(images.shape[1:3], tokens.shape[1])
        self._constants = data.normalization(bench.config)
        self._measure = jax.jit(self._measurements, out_shardings=bench.place.whole)

    def run(self, snapshot: Snapshot) -> Result:
        """See `Task.run`."""
        bench, found = self.bench, None
        total = bench.split_size(self._split) if self._chosen is None else len(self._chosen)
        examples = 0
        with bench.progress(total, f"zero-shot segmentation of the {self._split} split") as advance:
            for batch in bench.batches(self._split, self._chosen):
                rows = {"image": batch["image"], "valid": batch["valid"], "index": batch["index"].astype(np.int32)}
                sums = jax.device_get(self._measure(snapshot.variables, bench.place.put(rows)))
                sums = jax.tree.map(lambda x: x.astype(np.float64), sums)
                examples += int(sums["valid"])
                advance(int(sums.pop("valid")))
                found = sums if found is None else jax.tree.map(np.add, found, sums)
        return Result(
            metrics=self._summary(found),
            complete=examples == bench.split_size(self._split),
            details={"examples": examples, "examples_with_object": int(found["objects"])},
        )

    def _summary(self, sums: dict) -> dict[str, float]:
        objects, intra, inter = sums["objects"], sums["intra"], sums["inter"]
        if not objects or not intra.histogram.sum() or not inter.histogram.sum():
            raise DataError(
                "zero_shot found no object on a background in any image; set evaluation.zero_shot.background and "
                "foreground_threshold to fit the data, or remove 'zero_shot' from evaluation.tasks."
            )
        iou = 100.0 * sums["iou"] / objects
        best = int(np.argmax(iou))
        return {
            "iou": float(iou.mean()),
            "iou_best": float(iou[best]),
            "threshold_best": float(self.settings.thresholds[best]),
            "iou_everything": float(100.0 * sums["share"] / objects),
            "intra": float(intra.total / intra.histogram.sum()),
            "inter": float(inter.total / inter.histogram.sum()),
            "overlap": overlap(intra.histogram, inter.histogram),
        }

    def _measurements(self, variables: Variables, batch: dict[str, jax.Array]) -> dict:
        """Sums over the valid images of a batch that have an object; `valid` counts all valid ones."""
        settings = self.settings
        tokens = self.bench.objective.encode(variables, batch["image"])["tokens"].astype(jnp.float32)
        inside = self._foreground(batch["image"])
        belongs = self._patch_share(inside) >= 0.5
        used = batch["valid"] & belongs.any(axis=1)

        prompts = jax.vmap(self._prompts)(batch["index"], belongs)
        maps = upsample(prompt_map(tokens, prompts), self._grid, self._size)
        masks = jnp.broadcast_to(inside[:, None], maps.shape)
        iou = threshold_iou(maps, masks, settings.thresholds).mean(axis=1)

        objects = jnp.where(used[:, None], jnp.where(belongs, OBJECT, BACKGROUND), NOTHING)
        counted = used.astype(jnp.float32)
        return {
            "iou": (iou * counted[:, None]).sum(axis=0),
            "share": (inside.mean(axis=(1, 2), dtype=jnp.float32) * counted).sum(),
            "intra": pair_similarities(
                tokens, same_object(jnp.where(objects == OBJECT, OBJECT, NOTHING)), settings.bins
            ),
            "inter": pair_similarities(tokens, different_objects(objects), settings.bins),
            "objects": counted.sum(),
            "valid": batch["valid"].sum(dtype=jnp.int32),
        }

    def _foreground(self, images: jax.Array) -> jax.Array:
        """Which pixels of normalised `images [B, H, W, C]` are not background: bool `[B, H, W]`."""
        mean, std = (jnp.asarray(values, jnp.float32)[None, None, None] for values in self._constants)
        difference = jnp.abs(images * std + mean - self.settings.background)
        return (difference > self.settings.foreground_threshold).any(axis=-1)

    def _patch_share(self, inside: jax.Array) -> jax.Array:
        """The share of each patch's pixels that lie inside: float32 `[B, N]`."""
        (rows, columns), (height, width) = self._grid, self._size
        patches = inside.reshape(-1, rows, height // rows, columns, width // columns)
        return patches.mean(axis=(2, 4), dtype=jnp.float32).reshape(-1, rows * columns)

    def _prompts(self, index: jax.Array, belongs: jax.Array) -> jax.Array:
        """Random patches of an example's object, `[P]` int32; a function of its number alone."""
        rng = jax.random.fold_in(jax.random.key(self.settings.seed), index)
        weight = jnp.where(belongs, 0.0, -jnp.inf)
        # An image without an object counts for nothing, but a draw from nothing would be no index.
        weight = jnp.where(belongs.any(), weight, 0.0)
        return jax.random.categorical(rng, weight, shape=(self.settings.prompts,)).astype(jnp.int32)

    def _check(self) -> None:
        settings = self.settings
        if settings.prompts < 1 or settings.bins < 2:
            raise ConfigError(
                f"evaluation.zero_shot.prompts is {settings.prompts} and bins {settings.bins}; give at least 1 and 2."
            )
        if not settings.thresholds or not all(-1.0 <= value < 1.0 for value in settings.thresholds):
            raise ConfigError(
                f"evaluation.zero_shot.thresholds is {settings.thresholds}; give cosines in [-1, 1), at least one."
            )
        for key in ("foreground_threshold", "background"):
            if not 0.0 <= settings[key] <= 1.0:
                raise ConfigError(f"evaluation.zero_shot.{key} is {settings[key]}; it must lie in [0, 1].")
        if settings.max_examples is not None and settings.max_examples < 1:
            raise ConfigError(f"evaluation.zero_shot.max_examples is {settings.max_examples}; it must be at least 1.")


def _grid(size: tuple[int, int], count: int) -> tuple[int, int]:
    """Rows and columns of `count` square patches of an image; raises ConfigError if there is no such grid."""
    rows = math.isqrt(count * size[0] // size[1])
    if rows < 1 or count % rows or size[0] % rows or size[1] % (count // rows):
        raise ConfigError(
            f"zero_shot needs a token for each patch of a grid, and this encoder gives {count} tokens of "
            f"{size[0]}x{size[1]} pixels; remove 'zero_shot' from evaluation.tasks."
        )
    return rows, count // rows
