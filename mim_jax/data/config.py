"""The `data` section of a run's config: its defaults and the checks that need no data."""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict

from mim_jax.data.color import OFF, active_key
from mim_jax.errors import ConfigError
from mim_jax.fields import optional

CROPS = ("random_resized", "window", "resize", "none")
VIEWS = ("one", "same", "random", "global_to_local", "local_to_global", "weak_strong", "pairs")
EVAL_CROPS = ("center", "resize")
INTERPOLATIONS = ("bicubic", "bilinear")


def default_config() -> ConfigDict:
    """Every field of the `data` section with its default (MAE's ImageNet pre-training, He et al. 2022, table 8)."""
    data = ConfigDict()
    # Where images come from: "tfds:NAME[/CONFIG][:VERSION]", "folder:DIR", "npz:FILE", "idx:DIR-OR-PREFIX",
    # "pairs:DIR", "synthetic:N".
    data.source = "tfds:imagenet2012"
    data.data_dir = optional(str)  # TFDS directory; None: $TFDS_DATA_DIR, else ~/tensorflow_datasets
    data.train_split = "train"
    data.eval_split = optional(str, "auto")  # "auto": the first of validation, val, test, eval there is; None: none
    data.image_key = "image"  # feature names, for TFDS data sets that call them something else
    data.label_key = "label"
    # What a batch holds of each example in training: "one" view of it, `image`, or two, `image` and `view2`; see
    # mim_jax/data/views.py. Evaluation always shows one.
    data.views = "one"
    # Training crop: "random_resized"; "window", a random part of the image at one scale; "resize" squashes the whole
    # image; "none" wants images of image_size.
    data.crop = "random_resized"
    data.crop_scale = (0.2, 1.0)  # share of the image's area a random crop covers
    data.crop_ratio = (3 / 4, 4 / 3)  # its width over its height, drawn log-uniformly
    # With views="global_to_local" and its reverse: the local crop's share of the global one.
    data.local_scale = (0.3, 0.6)
    data.crop_resize = optional(int)  # of "window": the short side before it is cut out; None: that of image_size
    data.crop_padding = 0  # of "window": mirrored pixels it may show beyond each border
    data.interpolation = "bicubic"  # or "bilinear"; both antialiased as in Pillow
    data.flip = True  # mirror half of the training images
    # Largest change of brightness, contrast, saturation (as factors 1 - x to 1 + x) and hue (in turns); None: off. With
    # views="weak_strong" this and all colour distortions below change `view2` alone, otherwise every view by itself.
    data.color_jitter = optional(tuple)
    data.color_jitter_probability = 1.0
    data.three_augment = False  # True: grey, solarised or blurred, one of the three at random (DeiT III)
    data.grayscale = 0.0  # share of the views that are made grey (BYOL, DINO, MoCo v3: 0.2), blurred, and solarised
    data.blur = 0.0
    data.solarize = 0.0
    data.rand_augment = optional(str)  # such as "rand-m9-mstd0.5-inc1" (fine-tuning); None: off
    data.trivial_augment = False  # one random operation an image (fine-tuning of SparK); in the place of rand_augment
    data.random_erasing = 0.0  # share of training images that get a box of noise (fine-tuning: 0.25)
    data.repeats = 1  # differently augmented views of an image in a batch, neighbours (repeated augmentation)
    data.eval_resize = optional(int)  # short side before the centre crop; None: image_size * 256 / 224, or as stored
    data.eval_crop = "center"  # or "resize": squash the whole image
    data.mean = optional(tuple)  # per channel, of values in [0, 1]; None: the data set's constants, else ImageNet's
    data.std = optional(tuple)
    # Folder made by tools/cache_features.py: what frozen teachers say of each training image is read from there instead
    # of computed, which needs training images that are the same in every epoch. None: computed.
    data.teacher_cache = optional(str)
    data.num_workers = optional(int)  # decoding threads; None: one per core
    data.prefetch = 2  # batches decoded ahead of the consumer
    data.memory_gib = 1.0  # TFDS splits of equally sized images up to this size are decoded once and kept in memory
    data.max_bad_fraction = 0.01  # stop when more than this share of the images cannot be read
    return data


def image_hw(image_size: int | Sequence[int]) -> tuple[int, int]:
    """`image_size` (an int or `(height, width)`) as `(height, width)`; raises ConfigError for anything else."""
    sizes = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ConfigError(f"image_size is {image_size!r}; give one positive integer or (height, width).")
    return sizes


def eval_resize(config: ConfigDict) -> int:
    """The short side an evaluation image is resized to before its centre crop (256 for 224 by default)."""
    short_side = min(image_hw(config.image_size))
    if config.data.eval_resize is None:
        return int(short_side * 256 / 224)
    return config.data.eval_resize


def check_config(config: ConfigDict) -> None:
    """Refuses values of the `data` section that can never work.

    Raises:
      ConfigError: naming the key, its value and what it may be.
    """
    data = config.data
    image_hw(config.image_size)
    _check_choice("data.views", data.views, VIEWS)
    _check_choice("data.crop", data.crop, CROPS)
    _check_choice("data.eval_crop", data.eval_crop, EVAL_CROPS)
    _check_choice("data.interpolation", data.interpolation, INTERPOLATIONS)
    for key in ("crop_scale", "local_scale"):
        low, high = _pair(f"data.{key}", data[key])
        if not 0.0 < low <= high <= 1.0:
            raise ConfigError(f"data.{key} is {(low, high)}; it must be two rising shares of the area in (0, 1].")
    low, high = _pair("data.crop_ratio", data.crop_ratio)
    if not 0.0 < low <= high:
        raise ConfigError(f"data.crop_ratio is {(low, high)}; it must be two rising positive aspect ratios.")
    _check_window(config)
    _check_colors(data)
    if data.rand_augment and data.trivial_augment:
        raise ConfigError("data.rand_augment and data.trivial_augment are alternatives; set rand_augment to None.")
    if data.repeats < 1:
        raise ConfigError(f"data.repeats is {data.repeats}; it must be at least 1.")
    shares = ("color_jitter_probability", "grayscale", "blur", "solarize", "random_erasing", "max_bad_fraction")
    for key in shares:
        if not 0.0 <= data[key] <= 1.0:
            raise ConfigError(f"data.{key} is {data[key]}; it must lie in [0, 1].")
    if config.channels < 1:
        raise ConfigError(f"channels is {config.channels}; it must be at least 1.")
    if data.num_workers is not None and data.num_workers < 1:
        raise ConfigError(f"data.num_workers is {data.num_workers}; give at least 1, or None for one per core.")
    if data.prefetch < 1:
        raise ConfigError(f"data.prefetch is {data.prefetch}; it must be at least 1.")
    if data.eval_crop == "center" and eval_resize(config) < min(image_hw(config.image_size)):
        raise ConfigError(
            f"data.eval_resize is {data.eval_resize}, smaller than image_size {config.image_size}, so that the centre "
            "crop would not fit; raise data.eval_resize."
        )


def window_resize(config: ConfigDict) -> int:
    """The short side an image is resized to before a window is cut out of it."""
    return min(image_hw(config.image_size)) if config.data.crop_resize is None else config.data.crop_resize


def _check_window(config: ConfigDict) -> None:
    short_side, padding = min(image_hw(config.image_size)), config.data.crop_padding
    if window_resize(config) < short_side:
        raise ConfigError(
            f"data.crop_resize is {config.data.crop_resize}, smaller than image_size {config.image_size}, so that a "
            "window of that size would not fit; raise data.crop_resize."
        )
    if not 0 <= padding < short_side:
        raise ConfigError(f"data.crop_padding is {padding}; it must lie in [0, {short_side}), the image's short side.")


def _check_colors(data: ConfigDict) -> None:
    jitter = data.color_jitter
    if jitter is not None and (len(jitter) != 4 or min(jitter) < 0 or max(jitter[:3]) > 1 or jitter[3] > 0.5):
        raise ConfigError(
            f"data.color_jitter is {tuple(jitter)}; give brightness, contrast and saturation in [0, 1] and hue in "
            "[0, 0.5]."
        )
    if data.views == "weak_strong" and active_key(data) is None:
        raise ConfigError(
            "data.views is 'weak_strong', but nothing makes the second view a strong one; set one of "
            f"{', '.join(f'data.{key}' for key in OFF)}, or choose data.views='random'."
        )


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{key} is {value!r}; choose one of {', '.join(map(repr, choices))}.")


def _pair(key: str, value: Sequence[float]) -> tuple[float, float]:
    if len(value) != 2:
        raise ConfigError(f"{key} is {value}; it must be two numbers.")
    return float(value[0]), float(value[1])
