"""An encoder with a linear classifier on its pooled features, as MAE fine-tunes it (He et al. 2022, appendix A.1)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.contract import Variables
from mim_jax.errors import ConfigError
from mim_jax.layers.block import drop_path_rngs
from mim_jax.layers.initializers import Initializer, torch_default_bias, torch_default_kernel
from mim_jax.models import backbone, statistics

#: What a head's kernel starts from. The official truncated normals cut at +-2, so that they are plain ones.
HEAD_INITS: dict[str, Initializer] = {
    "mae": nn.initializers.normal(2e-5),  # close to zero
    "normal": nn.initializers.normal(0.02),  # ConvNeXt, Swin
    "torch": torch_default_kernel,  # timm's ResNets; the bias too is PyTorch's
}


def classification_head(num_classes: int, width: int, init: str = "mae") -> nn.Dense:
    """A linear classifier of features `[B, width]`, initialised as `init` says.

    Raises:
      ConfigError: `init` is unknown.
    """
    if init not in HEAD_INITS:
        raise ConfigError(f"head_init is {init!r}; choose one of {', '.join(HEAD_INITS)}.")
    bias_init = torch_default_bias(width) if init == "torch" else nn.initializers.zeros_init()
    return nn.Dense(num_classes, kernel_init=HEAD_INITS[init], bias_init=bias_init)


class Classifier:
    """An encoder, pooling, norm and head, as functions of the contract's variables; `params` has `{"encoder", "norm",
    "head"}`, and `state` the statistics of an encoder with BatchNorm.

    With `model.pool="mean"` the patch tokens are averaged after the last block and BEFORE any norm, and a new LayerNorm
    follows (the pre-trained final norm is not used); with "class" the head reads the class token after the final norm,
    and there is no "norm". Other backbones than ViTs are pooled as their official classifiers are (see their modules).
    """

    def __init__(self, config: ConfigDict, head_init: str = "mae"):
        self.encoder, norm_after_pooling = backbone.build_supervised(config)
        # Pooling, norm and head run in float32: they cost nothing, and logits decide the metric.
        self.norm = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False) if norm_after_pooling else None
        self.head = classification_head(config.num_classes, self.encoder.width, head_init)

    def init(self, rng: jax.Array, images: Any) -> Variables:
        """Variables for images shaped like `images` (arrays or `jax.ShapeDtypeStruct`)."""
        encoder_rng, head_rng = jax.random.split(rng)
        images = jnp.zeros(images.shape, jnp.float32)[:1]
        pooled = jnp.zeros((1, self.encoder.width), jnp.float32)
        parts = {"encoder": self.encoder.init(encoder_rng, images), "head": self.head.init(head_rng, pooled)}
        if self.norm is not None:
            parts["norm"] = self.norm.init(head_rng, pooled)
        return statistics.collect(parts)

    def __call__(
        self, variables: Variables, images: jax.Array, rng: jax.Array | None = None, *, train: bool = False
    ) -> tuple[dict[str, jax.Array], jax.Array, dict[str, Any]]:
        """Features (see `ViT.split`; "pooled" is what the head reads), logits `[B, classes]` float32, new statistics.

        Without `rng` there is no drop path. Without `train` BatchNorm uses its running statistics, and there are no new
        ones.
        """
        tokens, state = statistics.apply(self.encoder, variables, "encoder", images, train=train, **drop_path_rngs(rng))
        params = variables["params"]
        features = self.encoder.split(tokens)
        if self.norm is not None:
            features["pooled"] = self.norm.apply({"params": params["norm"]}, features["pooled"])
        return features, self.head.apply({"params": params["head"]}, features["pooled"]), state
