"""`linear`: accuracy of a linear classifier on frozen features, with a sweep of learning rates in one pass."""

from __future__ import annotations

import jax
import numpy as np
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.evaluation.bench import Bench, Snapshot
from mim_jax.evaluation.features import FeatureSet
from mim_jax.evaluation.linear import LinearSweep, SweepState, make_direction
from mim_jax.evaluation.linear_fit import CachedFit, StreamedFit, count_right
from mim_jax.evaluation.task import Result, Task
from mim_jax.fields import optional


class Linear(Task):
    """Trains one classifier per learning rate; training images held out choose the rate; `top1` is its test accuracy.

    Numbers in percent: `top1` and `holdout_top1` of the chosen rate `lr`, and `top1_lr<rate>` of every rate. The
    evaluation split has no part in the choice. The held-out images train no classifier, which costs `top1` a little.

    Features are computed once under the evaluation transform, or with `augment` at every step from random crops.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """MAE's optimiser, for small data. MAE on ImageNet: 90 epochs, warm-up 10, batch 16384, augment."""
        return ConfigDict(
            dict(
                augment=False,  # True: random crops and flips, through the encoder at every step
                crop_scale=(0.08, 1.0),  # with augment: share of the image's area a crop covers
                feature="pooled",  # "pooled", "tokens_mean", or another [B, D] output of encode
                optimizer="lars",  # or "adamw"
                lrs=(0.1, 0.3, 1.0, 3.0, 10.0),  # peak learning rates, for batches of lr_reference_batch
                lr_reference_batch=optional(int, 256),  # lrs are multiplied by batch size / this; None: absolute
                momentum=0.9,  # lars
                trust_coefficient=0.001,  # lars
                weight_decay=0.0,
                epochs=50,
                warmup_epochs=5.0,
                batch_size=1024,  # at most the number of training images
                holdout=0.1,  # share of the training images that choose the learning rate; 0 with a single one
            )
        )

    def __init__(self, bench: Bench):
        super().__init__(bench)
        settings = self.settings
        bench.require_eval_split(self.name())
        num_classes = bench.require_classes(self.name())
        width = bench.feature_width(settings.feature)
        self._check()
        size = bench.split_size("train")
        order = np.random.default_rng([bench.config.seed, 1]).permutation(size)
        self._held = np.sort(order[: round(settings.holdout * size)])
        fit = StreamedFit if settings.augment else CachedFit
        self._fit = fit(bench, settings, self._held)
        scale = 1.0 if settings.lr_reference_batch is None else self._fit.batch_size / settings.lr_reference_batch
        sweep = LinearSweep(
            direction=make_direction(
                settings.optimizer,
                momentum=settings.momentum,
                trust_coefficient=settings.trust_coefficient,
                weight_decay=settings.weight_decay,
            ),
            rates=tuple(rate * scale for rate in settings.lrs),
            total_steps=settings.epochs * self._fit.steps_per_epoch,
            warmup_steps=round(settings.warmup_epochs * self._fit.steps_per_epoch),
        )
        self._sweep = sweep
        self._initial_state = jax.jit(
            lambda: sweep.init(jax.random.key(bench.config.seed), width, num_classes), out_shardings=bench.place.whole
        )

    def run(self, snapshot: Snapshot) -> Result:
        """See `Task.run`."""
        bench, settings = self.bench, self.settings
        state = self._fit(snapshot, self._sweep, self._initial_state(), settings.epochs)
        tested = snapshot.features("eval", settings.feature)
        top1 = self._accuracy(state, tested)
        chosen, metrics = 0, {}
        if len(self._held):
            held = self._accuracy(state, snapshot.features("train", settings.feature, self._held))
            chosen = int(np.argmax(held))
            metrics["holdout_top1"] = float(held[chosen])
        for rate, value in zip(settings.lrs, top1, strict=True):
            metrics[f"top1_lr{rate:g}"] = float(value)
        return Result(
            metrics={"top1": float(top1[chosen]), "lr": float(settings.lrs[chosen]), **metrics},
            complete=len(tested) == bench.split_size("eval"),
            details={
                "train_examples": bench.split_size("train") - len(self._held),
                "holdout_examples": len(self._held),
                "eval_examples": len(tested),
            },
        )

    def _accuracy(self, state: SweepState, examples: FeatureSet) -> np.ndarray:
        """Percent of the examples each classifier gets right, `[L]`."""
        return 100.0 * count_right(state, examples, self.bench.place) / len(examples)

    def _check(self) -> None:
        settings = self.settings
        if not settings.lrs or min(settings.lrs) <= 0.0:
            raise ConfigError(f"evaluation.linear.lrs is {settings.lrs}; give positive learning rates.")
        size = self.bench.split_size("train")
        if not 0.0 <= settings.holdout < 1.0 or (len(settings.lrs) > 1 and not round(settings.holdout * size)):
            raise ConfigError(
                f"evaluation.linear.holdout is {settings.holdout} of {size} training images; it must be below 1 and, "
                "to choose among several learning rates, leave at least one image out."
            )
        if settings.epochs < 1 or not 0.0 <= settings.warmup_epochs <= settings.epochs:
            raise ConfigError(
                f"evaluation.linear.epochs is {settings.epochs} and warmup_epochs {settings.warmup_epochs}; there must "
                "be at least one epoch, and the warm-up must fit."
            )
