"""Fine-tuning of a classifier that also learns the decisions of a larger one, frozen (DeiT's distillation token).

As the second stage of G2SD has it: "Generic-to-Specific Distillation of Masked Autoencoders", Huang et al., CVPR 2023,
arXiv 2302.14771, section 3.3. The first stage is `methods/g2sd.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Masks, Objective, Variables
from mim_jax.errors import ConfigError
from mim_jax.layers import mixing
from mim_jax.layers.block import drop_path_rngs
from mim_jax.models import classifier_teacher, teachers, vit
from mim_jax.models.classifier import classification_head
from mim_jax.targets.labels import check_num_classes, read_labels, smoothed_targets
from mim_jax.targets.nkd import normalized_distillation


class Distillation(Objective):
    """Half the cross entropy of the class token with the true labels, half that of the distillation token with the
    teacher's.

    Both tokens pass through the encoder and its final norm, and each has a linear head. The teacher sees the same mixed
    images as the student, and its largest logit is the label, hard. Evaluated is the mean of both heads' logits. The
    teacher runs without gradients, and still a ViT-B makes up 56 % of the matrix products of a step for a ViT-S.

    The distillation token is a register of the encoder: it has no position, so that its place in the sequence (last in
    the official code) changes nothing. DeiT's has a position of its own, and stands second.

    With `nkd` there is, as in the official code, one loss alone, that of `normalized_distillation` on the class token's
    logits; the distillation token stays in the sequence, but has no head.
    """

    @classmethod
    def default_config(cls) -> ConfigDict:
        """ViT-S/16 from a fine-tuned ViT-B/16 on ImageNet-1k."""
        model = vit.default_config()
        model.update(**vit.vit_size("S"), position="sincos_learned")
        return ConfigDict(
            dict(
                model=model,
                num_classes=1000,
                label_smoothing=0.1,
                mixing=mixing.default_config(),
                teacher=teachers.section("mae_vit_b16_finetuned"),
                nkd=False,
            )
        )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        check_num_classes(config.num_classes)
        if not 0.0 <= config.label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing is {config.label_smoothing}; it must lie in [0, 1).")
        mixing.check_config(config.mixing)
        if config.model.pool != "class" or not config.model.class_token:
            raise ConfigError("Distillation reads the class token; set model.pool='class' and model.class_token=True.")
        if config.model.num_registers:
            raise ConfigError(f"model.num_registers is {config.model.num_registers}; set it to 0: one is made here.")
        if config.model.position == "rope" or config.model.relative_bias:
            raise ConfigError(
                "The distillation token has no position, which only absolute positions allow; set "
                "model.position='sincos_learned' and model.relative_bias=False."
            )
        self.encoder = vit.build(config).clone(num_registers=1)
        self.head = classification_head(config.num_classes, self.encoder.width)
        self.distillation_head = nn.Dense(config.num_classes, kernel_init=nn.initializers.normal(0.02))
        self.teacher = classifier_teacher.build(config.teacher, config)
        self.teachers = {"teacher": self.teacher}

    def batch_spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        """Images and `label [B]` int32."""
        return {**super().batch_spec(batch_size), "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32)}

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`params`: `encoder`, `head`, `distillation_head` (not with `nkd`); `teacher`: `teacher`."""
        encoder_rng, head_rng, distillation_rng, teacher_rng = jax.random.split(rng, 4)
        images = jnp.zeros(batch["image"].shape, jnp.float32)[:1]
        token = jnp.zeros((1, self.encoder.width), jnp.float32)
        params = {
            "encoder": self.encoder.init(encoder_rng, images)["params"],
            "head": self.head.init(head_rng, token)["params"],
        }
        if not self.config.nkd:
            params["distillation_head"] = self.distillation_head.init(distillation_rng, token)["params"]
        return {"params": params, "teacher": {"teacher": self.teacher.init(teacher_rng)}}

    def teach(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """The teacher's `logits [B, classes]`; raises ConfigError where it is asked about mixed images."""
        if mixing.is_on(self.config.mixing):
            raise ConfigError(
                "mixing is on, so that the teacher is asked about mixed images, which cannot be stored; set "
                "mixing.probability to 0.0, or remove data.teacher_cache."
            )
        return {"logits": self.teacher(variables["teacher"]["teacher"], batch["image"])}

    def loss(self, variables: Variables, batch: Batch, masks: Masks, rng: jax.Array, clock: Clock):
        """The mean of `aux["terms"]["cross_entropy"]` and `["distillation"]`; with `nkd`, `["nkd"]`.

        Targets are smoothed and mixed as in fine-tuning. `aux["prediction"]` are the logits that `predict` gives,
        `aux["target"]` the true labels' probabilities, `aux["teacher"]` the teacher's logits, each `[B, classes]`.
        """
        del masks, clock
        config = self.config
        mix_rng, drop_rng = (None, None) if rng is None else jax.random.split(rng)
        labels = read_labels(batch, config.num_classes)
        images, target = batch["image"], smoothed_targets(labels, config.num_classes, config.label_smoothing)
        mixes = mixing.is_on(config.mixing) and mix_rng is not None
        if mixes:
            mixed = mixing.draw_mixing(mix_rng, images.shape[1:3], config.mixing)
            images, target = mixed.images(images), mixed.targets(target)
        if mixing.is_on(config.mixing):
            teacher = self.teacher(variables["teacher"]["teacher"], images)
        else:
            teacher = self.taught(variables, batch)["logits"]
        features, logits, distilled = self._forward(variables["params"], images, drop_rng)
        if config.nkd:
            loss = normalized_distillation(logits, teacher, target.argmax(axis=-1))
            terms = {"nkd": loss}
        else:
            terms = {
                "cross_entropy": optax.losses.softmax_cross_entropy(logits, target).mean(),
                "distillation": optax.losses.softmax_cross_entropy_with_integer_labels(
                    distilled, teacher.argmax(axis=-1)
                ).mean(),
            }
            loss = 0.5 * (terms["cross_entropy"] + terms["distillation"])
        prediction = _average(logits, distilled)
        aux = {"terms": terms, "prediction": prediction, "target": target, "teacher": teacher}
        aux["latent"] = features["tokens"]
        if not mixes:
            aux["metrics"] = {"accuracy": (prediction.argmax(axis=-1) == labels).astype(jnp.float32).mean()}
        return loss, aux

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images; `pooled` is the class token, and `distilled` the distillation token."""
        return self._forward(variables["params"], images)[0]

    def predict(self, variables: Variables, images: jax.Array) -> jax.Array:
        """The mean of both heads' logits, `[B, classes]` float32; with `nkd`, those of the class token."""
        return _average(*self._forward(variables["params"], images)[1:])

    def _forward(self, params: Variables, images: jax.Array, rng: jax.Array | None = None):
        """Features, and both heads' logits (None for a head there is not)."""
        tokens = self.encoder.apply(
            {"params": params["encoder"]}, images, return_registers=True, **drop_path_rngs(rng)
        ).astype(jnp.float32)
        features = {"tokens": tokens[:, 2:], "pooled": tokens[:, 0], "distilled": tokens[:, 1]}
        logits = self.head.apply({"params": params["head"]}, features["pooled"])
        if self.config.nkd:
            return features, logits, None
        head = {"params": params["distillation_head"]}
        return features, logits, self.distillation_head.apply(head, features["distilled"])


def _average(logits: jax.Array, distilled: jax.Array | None) -> jax.Array:
    return logits if distilled is None else 0.5 * (logits + distilled)
