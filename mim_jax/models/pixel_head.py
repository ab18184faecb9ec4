"""The linear head that predicts the pixels of every patch from its token."""

from __future__ import annotations

from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.layers.dense import Dense
from mim_jax.layers.initializers import find_scheme, torch_default_bias, torch_default_kernel
from mim_jax.models.backbone import Encoder


def build(config: ConfigDict, encoder: Encoder, init_scheme: str | None = None) -> nn.Dense:
    """Maps tokens `[..., D]` of `encoder` to patches `[..., p*p*C]`.

    The official heads of SimMIM and MFM are a 1x1 convolution before a PixelShuffle; on patch vectors a dense layer is
    the same map. Without an `init_scheme` it starts as theirs do, by PyTorch's default; else its bias is 0.

    Raises:
      ConfigError: the tokens of a hierarchical encoder reach beyond the image's border.
    """
    (ph, pw), (height, width) = encoder.patch_size, encoder.image_size
    if height % ph or width % pw:
        raise ConfigError(
            f"image_size {height}x{width} is not divisible by the {ph}x{pw} pixels of which a token of model.backbone "
            f"{config.model.backbone!r} stands when they are predicted; change image_size."
        )
    kernel_init, bias_init = torch_default_kernel, torch_default_bias(encoder.width)
    if init_scheme is not None:
        kernel_init, bias_init = find_scheme(init_scheme).kernel, nn.initializers.zeros_init()
    return Dense(
        ph * pw * config.channels, dtype=encoder.compute.jax_dtype, kernel_init=kernel_init, bias_init=bias_init
    )
