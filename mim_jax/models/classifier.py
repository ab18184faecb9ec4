"""An encoder with a linear classifier on its pooled features, as MAE fine-tunes it (He et al. 2022, appendix A.1)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.layers.block import drop_path_rngs
from mim_jax.models import vit


def classification_head(num_classes: int) -> nn.Dense:
    """MAE's: close to zero at first. The official truncated normal of deviation 2e-5 cuts at +-2: a plain normal."""
    return nn.Dense(num_classes, kernel_init=nn.initializers.normal(2e-5))


class Classifier:
    """Pooling, norm and head of a classifier, as functions of its parameters `{"encoder", "norm", "head"}`.

    With `model.pool="mean"` the patch tokens are averaged after the last block and BEFORE any norm, and a new LayerNorm
    follows (the pre-trained final norm is not used); with "class" the head reads the class token after the final norm,
    and there is no "norm".
    """

    def __init__(self, config: ConfigDict):
        norm_after_pooling = config.model.pool == "mean"
        self.encoder = vit.build(config, final_norm=not norm_after_pooling)
        # Pooling, norm and head run in float32: they cost nothing, and logits decide the metric.
        self.norm = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False) if norm_after_pooling else None
        self.head = classification_head(config.num_classes)

    def init(self, rng: jax.Array, images: Any) -> dict[str, Any]:
        """Parameters for images shaped like `images` (arrays or `jax.ShapeDtypeStruct`)."""
        encoder_rng, head_rng = jax.random.split(rng)
        images = jnp.zeros(images.shape, jnp.float32)[:1]
        pooled = jnp.zeros((1, self.encoder.width), jnp.float32)
        params = {
            "encoder": self.encoder.init(encoder_rng, images)["params"],
            "head": self.head.init(head_rng, pooled)["params"],
        }
        if self.norm is not None:
            params["norm"] = self.norm.init(head_rng, pooled)["params"]
        return params

    def __call__(
        self, params: dict[str, Any], images: jax.Array, rng: jax.Array | None = None
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """Features (see `ViT.split`; "pooled" is what the head reads) and logits `[B, classes]` float32.

        Without `rng` there is no drop path.
        """
        tokens = self.encoder.apply({"params": params["encoder"]}, images, **drop_path_rngs(rng))
        features = self.encoder.split(tokens)
        if self.norm is not None:
            features["pooled"] = self.norm.apply({"params": params["norm"]}, features["pooled"])
        return features, self.head.apply({"params": params["head"]}, features["pooled"])
