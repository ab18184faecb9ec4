"""Scaling of pixels to zero mean and unit variance, and back."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from mim_jax.errors import ConfigError

# Per-channel means and standard deviations of pixel values scaled to [0, 1].
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

# Keyed by the TFDS name without config and version. What is not listed takes ImageNet's values.
KNOWN = {
    "imagenet2012": IMAGENET,
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "kmnist": ((0.1918,), (0.3483,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn_cropped": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "stl10": ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
}


def normalization(config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """Per-channel mean and standard deviation `[C]`, float32, of pixel values scaled to [0, 1].

    `config.data.mean` and `std` win; otherwise the constants of the TFDS data set, otherwise ImageNet's. The
    constants of a grey data set are repeated for more channels, those of a colour one averaged for a single channel.

    Raises:
      ConfigError: a list of the wrong length, a standard deviation that is not positive, or no constants for so many
        channels.
    """
    known_mean, known_std = _known(config.data.source)
    mean = _per_channel("data.mean", config.data.mean, known_mean, config.channels)
    std = _per_channel("data.std", config.data.std, known_std, config.channels)
    if not (std > 0).all():
        raise ConfigError(f"data.std is {std.tolist()}; every channel's must be positive.")
    return mean, std


def denormalize(images: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1] of normalised `images [..., C]`, clipped, float32; `mean` and `std` are `[C]`."""
    images = np.asarray(images, np.float32)
    return np.clip(images * np.asarray(std, np.float32) + np.asarray(mean, np.float32), 0.0, 1.0)


def normalize_pixels(pixels: np.ndarray, mean: np.ndarray, std: np.ndarray, out: np.ndarray) -> None:
    """Writes `(pixels / scale - mean) / std` of `pixels [B, H, W, C]` to `out`, float32 of the same shape.

    `scale` is 255 for uint8 pixels and 1 for floats.
    """
    scale = np.float32(255 if pixels.dtype == np.uint8 else 1)
    batch, height, width, channels = pixels.shape
    # Constants are laid out along whole rows, because NumPy's inner loop over 3 channels is several times slower.
    gain = np.tile(np.float32(1) / (scale * std), width)
    offset = np.tile(-mean / std, width)
    rows = out.reshape(batch, height, width * channels)
    np.multiply(pixels.reshape(rows.shape), gain, out=rows, dtype=np.float32)
    rows += offset


def _known(source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scheme, _, rest = source.partition(":")
    name = rest.partition(":")[0].partition("/")[0]
    return KNOWN.get(name, IMAGENET) if scheme == "tfds" else IMAGENET


def _per_channel(key: str, given: tuple[float, ...] | None, known: tuple[float, ...], channels: int) -> np.ndarray:
    if given is not None:
        if len(given) != channels:
            raise ConfigError(f"{key} has {len(given)} values but channels is {channels}; give one value per channel.")
        return np.asarray(given, np.float32)
    if len(known) == channels:
        return np.asarray(known, np.float32)
    if channels == 1:
        return np.asarray([np.mean(known)], np.float32)
    if len(known) == 1:
        return np.asarray(known * channels, np.float32)
    raise ConfigError(f"channels is {channels} and no constants are known for so many; set {key} to {channels} values.")
