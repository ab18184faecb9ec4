"""The linear head that predicts the pixels of every patch from its token."""

from __future__ import annotations

from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.layers.initializers import torch_default_bias, torch_default_kernel
from mim_jax.models.vit import ViT


def build(config: ConfigDict, encoder: ViT) -> nn.Dense:
    """Maps tokens `[..., D]` of `encoder` to patches `[..., p*p*C]`.

    The official heads of SimMIM and MFM are a 1x1 convolution before a PixelShuffle; on patch vectors a dense layer is
    the same map.
    """
    ph, pw = encoder.patch_size
    return nn.Dense(
        ph * pw * config.channels,
        dtype=encoder.compute.jax_dtype,
        kernel_init=torch_default_kernel,
        bias_init=torch_default_bias(encoder.width),
    )
