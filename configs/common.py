"""What the recipes of one data set share."""

from __future__ import annotations

from ml_collections import ConfigDict


def imagenet(config: ConfigDict, *, crop_scale: tuple[float, float], interpolation: str, flip: bool) -> None:
    """ImageNet-1k from TFDS (`python tools/prepare_data.py imagenet2012`): random resized crops, tests at 256 / 224."""
    config.data.source = "tfds:imagenet2012"
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.crop = "random_resized"
    config.data.crop_scale = crop_scale
    config.data.crop_ratio = (3 / 4, 4 / 3)
    config.data.interpolation = interpolation
    config.data.flip = flip
    config.data.eval_resize = 256


def watch_imagenet(config: ConfigDict, tasks: tuple[str, ...]) -> None:
    """Follows a long run: k-NN on a tenth of the training images, and pictures where `tasks` says so."""
    config.log.every = "100 steps"
    config.checkpoint.every = "10 epochs"
    config.evaluation.every = "50 epochs"
    config.evaluation.tasks = tasks
    config.evaluation.batch_size = 1024
    config.evaluation.knn.max_train_examples = 128_000


def fashion_mnist(config: ConfigDict) -> None:
    """Fashion-MNIST from TFDS (`python tools/prepare_data.py fashion_mnist`): whole images, mirrored at random."""
    config.image_size = 28
    config.channels = 1
    config.data.source = "tfds:fashion_mnist"
    config.data.train_split = "train"
    config.data.eval_split = "test"
    config.data.crop = "none"
    config.data.flip = True


def watch_fashion_mnist(config: ConfigDict, tasks: tuple[str, ...]) -> None:
    """Follows a run of minutes."""
    config.log.every = "10 steps"
    config.evaluation.tasks = tasks
    config.evaluation.batch_size = 500
    config.evaluation.knn.max_train_examples = 20_000


def view_pairs(config: ConfigDict, source: str) -> None:
    """CroCo's pairs of 256x256 pixels: windows of 224, colours changed, each picture by itself; nothing is mirrored."""
    config.data.source = source
    config.data.views = "pairs"
    config.data.crop = "window"
    config.data.crop_resize = 256
    config.data.crop_padding = 0
    config.data.flip = False
    config.data.color_jitter = (0.4, 0.4, 0.4, 0.0)


def watch_pairs(config: ConfigDict) -> None:
    """Follows a long run on pairs, which have no labels, by pictures."""
    config.log.every = "100 steps"
    config.checkpoint.every = "5 epochs"
    config.evaluation.every = "25 epochs"
    config.evaluation.tasks = ("reconstruct",)
