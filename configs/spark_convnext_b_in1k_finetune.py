"""Fine-tuning of SparK's ConvNeXt-B on ImageNet-1k for 400 epochs (Tian et al. 2023, arXiv 2301.03580).

    python -m mim_jax.train --config=configs/spark_convnext_b_in1k_finetune.py --workdir=runs/spark_convnext_b_finetune

Published top-1 at 224 px: 84.8 %; 84.1 % with a ConvNeXt-S (`:S`), 85.4 % with an L (`:L`, 200 epochs).
It starts from the run of configs/spark_convnext_b_in1k.py; from the released weights with

    --config.init_from=convnextB_1kpretrained_official_style.pth --config.init_layout=keyu-tian/SparK

Every image is shown three times in a row, differently augmented, and so a third of them in an epoch. The recipe for an
L at 384 px is left out: its AutoAugment is not implemented here.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common
from mim_jax.errors import ConfigError
from mim_jax.models.convnext import convnext_size

# Epochs, of which warm-up, learning rate per 256 images, weight decay and drop path.
_RECIPES = {
    "S": (400, 20, 2e-4, 0.01, 0.3),
    "B": (400, 20, 1e-4, 0.01, 0.4),
    "L": (200, 10, 1e-4, 0.02, 0.5),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe for a ConvNeXt of size `arg`: "S", "B" (the default) or "L"."""
    size = arg or "B"
    if size not in _RECIPES:
        raise ConfigError(f"There is no recipe for a ConvNeXt-{size}; choose one of {', '.join(_RECIPES)}.")
    epochs, warmup, lr, weight_decay, drop_path = _RECIPES[size]
    config = mim_jax.default_config(task="classification", backbone="convnext")
    config.init_from = f"runs/spark_convnext_{size.lower()}"
    config.init_parts = ("encoder",)

    common.imagenet(config, crop_scale=(0.08, 1.0), interpolation="bicubic", flip=True)
    config.data.repeats = 3
    config.data.trivial_augment = True
    config.data.random_erasing = 0.25
    config.data.eval_resize = 235  # 224 are 95 % of it
    config.num_classes = 1000
    config.label_smoothing = 0.1
    config.mixing.update(probability=1.0, mixup_alpha=0.8, cutmix_alpha=1.0, cutmix_share=0.5)
    config.head_init = "normal"

    config.image_size = 224
    config.model.update(**convnext_size(size), drop_path=drop_path)

    config.batch_size = 4096
    config.duration = f"{epochs} epochs"
    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay, layer_decay=0.7)
    config.optimizer.no_decay = ("bias$", "scale$", "gamma$")
    config.optimizer.clip_norm = None
    config.optimizer.lr = lr  # per 256 images: 1.6e-3
    config.optimizer.lr_reference_batch = 256
    # From 0.005 to 0.001 times the peak, which the last step has.
    config.schedule.update(name="cosine", warmup=f"{warmup} epochs", reaches_end=True)
    config.schedule.update(start_lr=0.005 * lr, end_lr=0.001 * lr)
    config.ema_decay = 0.9999
    config.compute.dtype = "float32"  # as published

    common.watch_imagenet(config, ("accuracy",))
    config.checkpoint.every = "5 epochs"
    config.evaluation.every = "5 epochs"
    return config
