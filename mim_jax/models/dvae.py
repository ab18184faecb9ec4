"""The discrete VAE of DALL-E: images to logits over visual tokens and back (Ramesh et al. 2021, appendix A.1)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError
from mim_jax.layers.compute import Compute
from mim_jax.layers.convolution import Conv
from mim_jax.layers.sites import Sites

# A pixel in [0, 1] is moved into [EPSILON, 1 - EPSILON], where a logit exists.
EPSILON = 0.1

_FLOAT32 = Compute(dtype="float32")
_fan_in_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def squeeze_pixels(pixels: jax.Array) -> jax.Array:
    """Pixels in [0, 1] as the encoder wants to see them: in [0.1, 0.9]."""
    return (1.0 - 2.0 * EPSILON) * pixels + EPSILON


def unsqueeze_pixels(pixels: jax.Array) -> jax.Array:
    """The inverse of `squeeze_pixels`, clipped to [0, 1]."""
    return jnp.clip((pixels - EPSILON) / (1.0 - 2.0 * EPSILON), 0.0, 1.0)


def _convolve(x: jax.Array, features: int, window: int, compute: Compute, name: str) -> jax.Array:
    layer = Conv(features, _fan_in_normal, window, use_bias=True, compute=compute, name=name)
    return layer(x.astype(compute.jax_dtype), Sites())


def _halve(x: jax.Array) -> jax.Array:
    """The greatest of every 2x2 places of `[B, H, W, C]`.

    By choices, whose gradient a value computed twice and rounded otherwise cannot spoil, as it can that of a maximum.
    """
    batch, height, width, channels = x.shape
    rows = x.reshape(batch, height // 2, 2, width, channels)
    x = jnp.where(rows[:, :, 0] >= rows[:, :, 1], rows[:, :, 0], rows[:, :, 1])
    columns = x.reshape(batch, height // 2, width // 2, 2, channels)
    return jnp.where(columns[:, :, :, 0] >= columns[:, :, :, 1], columns[:, :, :, 0], columns[:, :, :, 1])


class ResidualBlock(nn.Module):
    """`shortcut(x) + gain * branch(x)`; the branch is four ReLUs and convolutions, a quarter as wide inside."""

    width: int
    windows: Sequence[int]  # of the four convolutions
    gain: float
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H, W, width]`."""
        branch = x
        for number, window in enumerate(self.windows, 1):
            features = self.width if number == len(self.windows) else self.width // 4
            branch = _convolve(jax.nn.relu(branch), features, window, self.compute, f"conv{number}")
        if x.shape[-1] != self.width:
            x = _convolve(x, self.width, 1, self.compute, "shortcut")
        return x.astype(self.compute.jax_dtype) + self.gain * branch


class Encoder(nn.Module):
    """Groups of residual blocks, each twice as wide as the last one and at half its resolution."""

    width: int = 2048  # of the last group
    groups: int = 4
    depth: int = 2  # blocks of each group
    num_codes: int = 8192
    compute: Compute = Compute()

    @property
    def stride(self) -> int:
        """Pixels to a token, along each axis."""
        return 2 ** (self.groups - 1)

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps squeezed pixels `[B, H, W, C]` to the last features `[B, h, w, width]` and logits `[B, h, w, codes]`."""
        x = _convolve(images, self.width // self.stride, 7, self.compute, "input")
        for group in range(1, self.groups + 1):
            width = self.width // 2 ** (self.groups - group)
            for block in range(1, self.depth + 1):
                name = f"group{group}_block{block}"
                x = ResidualBlock(width, (3, 3, 3, 1), self._gain, self.compute, name=name)(x)
            if group < self.groups:
                x = _halve(x)
        features = jax.nn.relu(x)
        # The last layer is float32 whatever the others are: of close logits the greatest is wanted.
        return features, _convolve(features, self.num_codes, 1, _FLOAT32, "output")

    @property
    def _gain(self) -> float:
        return 1.0 / (self.groups * self.depth) ** 2


class Decoder(nn.Module):
    """The encoder's mirror image, from (mixtures of) tokens to the parameters of a distribution for every pixel."""

    width: int = 2048  # of the first group
    groups: int = 4
    depth: int = 2
    code_width: int = 128  # of the tokens' embedding
    channels: int = 3
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, codes: jax.Array) -> jax.Array:
        """Maps weights of tokens `[B, h, w, codes]` to float32 `[B, H, W, 2 C]`: locations, then log scales."""
        x = _convolve(codes, self.code_width, 1, _FLOAT32, "input")
        gain = 1.0 / (self.groups * self.depth) ** 2
        for group in range(1, self.groups + 1):
            for block in range(1, self.depth + 1):
                name = f"group{group}_block{block}"
                x = ResidualBlock(self.width // 2 ** (group - 1), (1, 3, 3, 3), gain, self.compute, name=name)(x)
            if group < self.groups:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        x = _convolve(jax.nn.relu(x), 2 * self.channels, 1, self.compute, "output")
        return x.astype(jnp.float32)


def network_config() -> dict[str, int]:
    """The sizes of DALL-E's: 8192 tokens, one for 8x8 pixels."""
    return dict(width=2048, groups=4, depth=2, num_codes=8192)


def check_network(section: ConfigDict, name: str) -> None:
    """Raises ConfigError for sizes, in the config section `name`, that no network can have."""
    for key in ("groups", "depth", "num_codes"):
        if section[key] < 1:
            raise ConfigError(f"{name}.{key} is {section[key]}; it must be at least 1.")
    narrowest = section.width // 2 ** (section.groups - 1)
    if section.width % 2 ** (section.groups - 1) or narrowest < 4:
        raise ConfigError(
            f"{name}.width is {section.width}; it is halved for each of {name}.groups {section.groups} but one, and "
            "must be at least 4 then."
        )


def build_encoder(section: ConfigDict, compute: Compute) -> Encoder:
    """The encoder with the sizes of a config section, which `check_network` has seen."""
    return Encoder(section.width, section.groups, section.depth, section.num_codes, compute)
