"""From source pixels to normalised model input: the random training transform and the fixed evaluation transform."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from mim_jax.data import color, geometry
from mim_jax.data import config as data_config
from mim_jax.data.color import ColorDistortion
from mim_jax.data.geometry import View
from mim_jax.data.rand_augment import RandAugment
from mim_jax.data.random_erasing import erase_boxes
from mim_jax.data.sources import Examples
from mim_jax.data.stateless import Stream, uniforms
from mim_jax.data.trivial_augment import TrivialAugment
from mim_jax.errors import ConfigError, DataError
from mim_jax.normalization import normalization, normalize_pixels


@dataclasses.dataclass(frozen=True)
class Transform:
    """Crop, resize, flip, augment and normalise. Every random choice is a function of (seed, stream position)."""

    size: tuple[int, int]
    channels: int
    seed: int
    crop: str  # a value of data.crop in training; "center", "resize" or "none" in evaluation
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    crop_padding: int  # of a window
    resize_to: int  # short side of the picture out of which a window or a centre crop is cut
    interpolation: str
    flip: bool
    color: ColorDistortion | None
    augment: RandAugment | TrivialAugment | None
    random_erasing: float
    mean: np.ndarray
    std: np.ndarray

    def draws(self, positions: np.ndarray) -> np.ndarray | None:
        """Uniform numbers for the crops at `positions [n]`: float64 `[n, 40 or 2]`, None where crops are not random."""
        counts = {"random_resized": geometry.CROP_DRAWS, "window": geometry.WINDOW_DRAWS}
        if self.crop not in counts:
            return None
        return uniforms(self.seed, Stream.CROP, positions, counts[self.crop])

    def view(self, height: int, width: int, draws: Sequence[float] | None) -> View:
        """What to show of a picture of `height` x `width`.

        Raises:
          DataError: `data.crop` is "none" and the picture is not of the model's input size.
        """
        if self.crop == "random_resized":
            return geometry.random_resized_crop(height, width, draws, self.crop_scale, self.crop_ratio)
        if self.crop == "window":
            return geometry.random_window(height, width, draws, self.size, self.resize_to, self.crop_padding)
        if self.crop == "center":
            return geometry.center_crop(height, width, self.size, self.resize_to)
        if self.crop == "none" and (height, width) != self.size:
            raise DataError(
                f"data.crop is 'none' but an image of {height}x{width} pixels came up and image_size is "
                f"{self.size[0]}x{self.size[1]}; set data.crop to 'random_resized' or 'resize'."
            )
        return geometry.whole(height, width)

    def finish(self, pixels: np.ndarray, positions: np.ndarray, out: np.ndarray) -> None:
        """Flips (in place), augments and normalises `pixels [n, H, W, 1 or C]` into float32 `out [n, H, W, C]`."""
        if self.flip:
            flipped = uniforms(self.seed, Stream.FLIP, positions, 1)[:, 0] < 0.5
            mirrored = np.arange(pixels.shape[2])[::-1]
            pixels[flipped] = np.take(pixels[flipped], mirrored, axis=2)  # several times faster than slicing by -1
        if pixels.shape[3] != self.channels:
            pixels = np.repeat(pixels, self.channels, axis=3)
        if self.augment is not None:
            draws = uniforms(self.seed, Stream.RAND_AUGMENT, positions, self.augment.num_draws)
            pixels = np.stack([self.augment(image, row) for image, row in zip(pixels, draws, strict=True)])
        if self.color is not None:
            draws = uniforms(self.seed, Stream.COLOR, positions, color.NUM_DRAWS)
            rows = zip(pixels, draws.tolist(), strict=True)
            pixels = np.stack([self.color(image, row) for image, row in rows])
        normalize_pixels(np.ascontiguousarray(pixels), self.mean, self.std, out)
        if self.random_erasing > 0:
            erase_boxes(out, self.seed, positions, self.random_erasing)


def train_transform(config: ConfigDict, examples: Examples) -> Transform:
    """The random transform of `config.data` for these examples; raises ConfigError where they do not fit together."""
    data = config.data
    check_fit(config, examples)
    augment = None
    if data.rand_augment:
        mean, _ = normalization(config)
        augment = RandAugment(data.rand_augment, tuple(round(255 * float(value)) for value in mean), data.interpolation)
        _check_bytes(config, examples, "rand_augment", "None")
    elif data.trivial_augment:
        augment = TrivialAugment(config.channels, data.interpolation)
        _check_bytes(config, examples, "trivial_augment", "False")
    distorting = color.active_key(data)
    if distorting is not None:
        _check_bytes(config, examples, distorting, str(color.OFF[distorting]))
    return _transform(
        config,
        data.crop,
        resize_to=data_config.window_resize(config),
        flip=data.flip,
        augment=augment,
        color=color.color_distortion(data),
        random_erasing=data.random_erasing,
    )


def eval_transform(config: ConfigDict, examples: Examples) -> Transform:
    """The fixed transform: resize and centre crop, or nothing for images that all have the model's input size."""
    check_fit(config, examples)
    shape = examples.image_shape
    native = shape is not None and shape[:2] == data_config.image_hw(config.image_size)
    crop = "none" if native and config.data.eval_resize is None else config.data.eval_crop
    resize_to = data_config.eval_resize(config)
    return _transform(config, crop, resize_to=resize_to, flip=False, augment=None, color=None, random_erasing=0.0)


def check_fit(config: ConfigDict, examples: Examples) -> None:
    """Raises ConfigError if the images' channels, or with `data.crop` "none" their size, are not the config's."""
    _check_channels(config, examples)
    size, shape = data_config.image_hw(config.image_size), examples.image_shape
    if config.data.crop == "none" and shape is not None and shape[:2] != size:
        raise ConfigError(
            f"data.crop is 'none', but image_size is {size[0]}x{size[1]} and the images of {examples.name} are "
            f"{shape[0]}x{shape[1]}; set image_size to theirs or data.crop to 'random_resized' or 'resize'."
        )


def _check_bytes(config: ConfigDict, examples: Examples, key: str, off: str) -> None:
    """Raises ConfigError unless the images are of the kind Pillow's operations work on."""
    dtype = getattr(examples, "dtype", np.uint8)
    if dtype != np.uint8 or config.channels not in (1, 3):
        raise ConfigError(
            f"data.{key} needs 8-bit images of 1 or 3 channels, but {examples.name} is read as {config.channels} "
            f"channels of {np.dtype(dtype)}; set data.{key} to {off}."
        )


def _check_channels(config: ConfigDict, examples: Examples) -> None:
    """Raises ConfigError unless the images have `config.channels` channels or are grey ones to be repeated."""
    if examples.image_shape is None:
        if config.channels not in (1, 3):
            raise ConfigError(
                f"channels is {config.channels}, but the files of {examples.name} decode to 1 or 3 channels; set "
                "channels to 1 or 3, or store the images as arrays."
            )
        return
    stored = examples.image_shape[2]
    if stored != config.channels and not (stored == 1 and config.channels == 3):
        raise ConfigError(
            f"channels is {config.channels}, but the images of {examples.name} have {stored}; set channels to {stored}."
        )


def _transform(config: ConfigDict, crop: str, **options: object) -> Transform:
    mean, std = normalization(config)
    return Transform(
        size=data_config.image_hw(config.image_size),
        channels=config.channels,
        seed=config.seed,
        crop=crop,
        crop_scale=tuple(config.data.crop_scale),
        crop_ratio=tuple(config.data.crop_ratio),
        crop_padding=config.data.crop_padding,
        interpolation=config.data.interpolation,
        mean=mean,
        std=std,
        **options,
    )
