"""End-to-end fine-tuning of a pre-trained encoder as a classifier, as MAE does it (He et al. 2022, appendix A.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Masks, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.fields import optional
from mim_jax.layers import mixing
from mim_jax.models import vit
from mim_jax.models.classifier import Classifier
from mim_jax.targets.labels import check_num_classes, read_labels, smoothed_targets

LOSSES = {
    "cross_entropy": optax.losses.softmax_cross_entropy,
    # Every class is a question of its own (Wightman et al. 2021, arXiv 2110.00476); its mean is over the classes too.
    "binary_cross_entropy": optax.losses.sigmoid_binary_cross_entropy,
}


class Classification(Objective):
    """Soft-target cross entropy of a linear head on pooled features; every parameter is trained.

    `model.pool` says what the head reads (see `Classifier`). Label smoothing, mixup and CutMix act on the target once,
    inside `loss`.
    """

    encoder_needs = "whole_images"

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-B/16 on ImageNet-1k."""
        model = vit.default_config()
        model.update(pool="mean", position="sincos_learned", drop_path=0.1)
        return ConfigDict(
            dict(
                model=model,
                num_classes=1000,
                loss="cross_entropy",  # of a softmax over the classes; "binary_cross_entropy": of a sigmoid for each
                head_init="mae",  # see `mim_jax.models.classifier.HEAD_INITS`
                label_smoothing=0.1,
                mixing=mixing.default_config(),
                ema_decay=optional(float),  # e.g. 0.9999: evaluate an average of the parameters; None: evaluate them
            )
        )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        check_num_classes(config.num_classes)
        if config.loss not in LOSSES:
            raise ConfigError(f"loss is {config.loss!r}; choose one of {', '.join(LOSSES)}.")
        if not 0.0 <= config.label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing is {config.label_smoothing}; it must lie in [0, 1).")
        if config.ema_decay is not None and not 0.0 < config.ema_decay < 1.0:
            raise ConfigError(f"ema_decay is {config.ema_decay}; it must lie in (0, 1), or be None for no average.")
        mixing.check_config(config.mixing)
        self.classifier = Classifier(config, config.head_init)
        self.encoder = self.classifier.encoder

    def batch_spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        """Images and `label [B]` int32."""
        return {**super().batch_spec(batch_size), "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32)}

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"encoder", "norm" (mean pooling only), "head"}}`, and a copy as "teacher" with `ema_decay`.

        An encoder with BatchNorm has its statistics in "state", and with `ema_decay` their average too.
        """
        variables = self.classifier.init(rng, batch["image"])
        if self.config.ema_decay is None:
            return variables
        # Copies, not the same buffers: the training step donates its input, and a buffer can be donated only once.
        averaged = {"teacher": jax.tree.map(jnp.copy, variables["params"])}
        if "state" in variables:
            averaged["state"] = {**variables["state"], "averaged": jax.tree.map(jnp.copy, variables["state"])}
        return {**variables, **averaged}

    def loss(self, variables: Variables, batch: Batch, masks: Masks, rng: jax.Array, clock: Clock):
        """Cross entropy with smoothed and mixed targets, mean over the batch; `aux["terms"]` has it by its name.

        `aux["prediction"]` are the logits and `aux["target"]` the probabilities `[B, classes]`. Where batches are never
        mixed, `aux["metrics"]["accuracy"]` is the share of this batch that is classified correctly.
        """
        del masks, clock
        config = self.config
        mix_rng, drop_rng = jax.random.split(rng)
        labels = read_labels(batch, config.num_classes)
        images, target = batch["image"], smoothed_targets(labels, config.num_classes, config.label_smoothing)
        mixes = mixing.is_on(config.mixing)
        if mixes:
            mixed = mixing.draw_mixing(mix_rng, images.shape[1:3], config.mixing)
            images, target = mixed.images(images), mixed.targets(target)
        features, logits, state = self.classifier(variables, images, drop_rng, train=True)
        loss = LOSSES[config.loss](logits, target).mean()
        aux = {"terms": {config.loss: loss}, "prediction": logits, "target": target, "latent": features["tokens"]}
        if state:
            aux["state"] = {**variables["state"], **state}
        if not mixes:
            aux["metrics"] = {"accuracy": (logits.argmax(axis=-1) == labels).astype(jnp.float32).mean()}
        return loss, aux

    def update(self, variables: Variables, clock: Clock) -> Variables:
        """With `ema_decay`: `teacher <- decay * teacher + (1 - decay) * params`, and so the statistics of BatchNorm."""
        del clock
        decay = self.config.ema_decay
        if decay is None:
            return variables
        blend = lambda old, new: decay * old + (1.0 - decay) * new  # noqa: E731
        updated = {**variables, "teacher": jax.tree.map(blend, variables["teacher"], variables["params"])}
        if "state" in variables:
            state = dict(variables["state"])
            averaged = state.pop("averaged")
            updated["state"] = {**state, "averaged": jax.tree.map(blend, averaged, state)}
        return updated

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images from the averaged parameters where they exist; `pooled` is what the head reads."""
        return self.classifier(self._averaged(variables), images)[0]

    def predict(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Logits `[B, classes]` float32, from the averaged parameters where they exist."""
        return self.classifier(self._averaged(variables), images)[1]

    def evaluated(self, variables: Variables) -> dict:
        """The average of the parameters, where the config asks for one."""
        return variables["params" if self.config.ema_decay is None else "teacher"]

    def _averaged(self, variables: Variables) -> Variables:
        state = variables.get("state", {})
        return {"params": self.evaluated(variables), "state": state.get("averaged", state)}
