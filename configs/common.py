"""What the recipes of one data set share."""

from __future__ import annotations

from ml_collections import ConfigDict

from mim_jax.errors import ConfigError


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


_SMALL_DATASETS = {
    "dtd": "dtd",
    "flowers": "oxford_flowers102",
    "dogs": "stanford_dogs",
    "birds": "caltech_birds2011",
}


def further_pretraining(config: ConfigDict, name: str) -> None:
    """A ViT-B/16 of transformers, decoder included, on a small data set: what Lee et al. 2023 train MAE with.

    Raises:
      ConfigError: `name` is none of the data sets.
    """
    if name not in _SMALL_DATASETS:
        raise ConfigError(f"There is no data set {name!r} in this recipe; choose one of {', '.join(_SMALL_DATASETS)}.")
    config.data.source = f"tfds:{_SMALL_DATASETS[name]}"
    config.data.train_split = "train"
    config.data.eval_split = "test"
    # The whole image, squashed; nothing is changed at random.
    config.data.crop = "resize"
    config.data.eval_crop = "resize"
    config.data.interpolation = "bilinear"
    config.data.flip = False

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=12, heads=12, mlp_ratio=4.0, norm_epsilon=1e-12)
    config.decoder.update(width=512, depth=8, heads=16, mlp_ratio=4.0)
    config.mask_ratio = 0.75
    config.norm_pix_loss = True

    # Biases and norms are exempt from weight decay; the class and mask tokens are not.
    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.01)
    config.optimizer.lr = 1.5e-4
    config.optimizer.lr_reference_batch = None  # absolute
    config.schedule.update(name="linear", warmup="0 steps", end_lr=0.0)
    config.compute.dtype = "float32"  # as published

    config.batch_size = 64
    config.duration = "20000 steps"
    config.log.every = "100 steps"
    config.checkpoint.every = "5000 steps"
    config.evaluation.every = "5000 steps"
    config.evaluation.tasks = ("knn", "reconstruct")
    config.evaluation.batch_size = 256
