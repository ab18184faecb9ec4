"""Linear probing: a linear classifier on features of a frozen encoder (He et al. 2022, appendix A.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.contract import Batch, Clock, Masks, Objective, Variables
from mim_jax.layers.batch_norm import initial_statistics, normalize, normalize_batch
from mim_jax.models import backbone, statistics, vit
from mim_jax.targets.features import normalized_features
from mim_jax.targets.labels import check_num_classes, read_labels


class LinearProbe(Objective):
    """Cross entropy of a linear head on features normalised by a BatchNorm without affine parameters.

    The encoder is `variables["teacher"]["encoder"]` and never changes; only the head is in `params`. `model.pool` names
    the feature: the "class" token after the pre-trained final norm, or the "mean" over patches before it, followed by a
    LayerNorm without affine parameters (the official code's new norm, frozen at its start).

    BatchNorm statistics are those of the global batch whatever the number of devices; the reference takes them per GPU.
    """

    encoder_needs = "whole_images"

    @classmethod
    def default_config(cls) -> ConfigDict:
        """The class token of a ViT-B/16 on ImageNet-1k."""
        return ConfigDict(dict(model=vit.default_config(), num_classes=1000))

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        check_num_classes(config.num_classes)
        self.encoder, self.norm_after_pooling = backbone.build_supervised(config)
        # The official truncated normal of deviation 0.01 cuts at +-2, so it is a plain normal.
        self.head = nn.Dense(config.num_classes, kernel_init=nn.initializers.normal(0.01))

    def batch_spec(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        """Images and `label [B]` int32."""
        return {**super().batch_spec(batch_size), "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32)}

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """`{"params": {"head"}, "teacher": {"encoder"}, "state": {"batch_norm"}}`, the encoder random.

        An encoder with BatchNorm has its own statistics in `state["encoder"]`, which never change either.
        """
        encoder_rng, head_rng = jax.random.split(rng)
        images = jnp.zeros(batch["image"].shape, jnp.float32)[:1]
        width = self.encoder.width
        encoder = statistics.collect({"encoder": self.encoder.init(encoder_rng, images)})
        return {
            "params": {"head": self.head.init(head_rng, jnp.zeros((1, width), jnp.float32))["params"]},
            "teacher": encoder["params"],
            "state": {"batch_norm": initial_statistics(width), **encoder.get("state", {})},
        }

    def loss(self, variables: Variables, batch: Batch, masks: Masks, rng: jax.Array, clock: Clock):
        """Cross entropy, mean over the batch; `aux["state"]` holds the BatchNorm's new running statistics."""
        del masks, rng, clock
        labels = read_labels(batch, self.config.num_classes)
        features = jax.lax.stop_gradient(self.encode(variables, batch["image"]))
        normalized, moved = normalize_batch(features["pooled"], variables["state"]["batch_norm"])
        logits = self._classify(variables, normalized)
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, {
            "terms": {"cross_entropy": loss},
            "metrics": {"accuracy": (logits.argmax(axis=-1) == labels).astype(jnp.float32).mean()},
            "state": {**variables["state"], "batch_norm": moved},
            "prediction": logits,
            "target": labels,
            "latent": features["tokens"],
        }

    def encode(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Features of intact images from the frozen encoder; `pooled` is what the BatchNorm reads."""
        tokens, _ = statistics.apply(self.encoder, variables, "encoder", images, collection="teacher")
        features = self.encoder.split(tokens)
        if self.norm_after_pooling:
            features["pooled"] = normalized_features(features["pooled"], epsilon=1e-6)
        return features

    def predict(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Logits `[B, classes]` float32, with the BatchNorm's running statistics."""
        pooled = self.encode(variables, images)["pooled"]
        return self._classify(variables, normalize(pooled, variables["state"]["batch_norm"]))

    def _classify(self, variables: Variables, normalized: jax.Array) -> jax.Array:
        return self.head.apply({"params": variables["params"]["head"]}, normalized)
