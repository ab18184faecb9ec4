"""MP3, ViT-B/16 on ImageNet-1k for 100 epochs (Zhai et al. 2022, arXiv 2207.07611).

    python -m mim_jax.train --config=configs/mp3_vit_b16_in1k.py --workdir=runs/mp3_vit_b16

Quoted by later work as 83.0 % ImageNet-1k top-1, fine-tuned; not confirmed. There is no official code: the epochs and
the mask ratio are as reported second hand, optimiser, schedule and batch are MAE's, for want of the paper's own.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="mp3")

    # No colour augmentation; whether the paper has any is not known.
    common.imagenet(config, crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True)

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=12, heads=12, mlp_ratio=4.0)

    config.mask_ratio = 0.75
    config.loss_on = "all"

    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)
    config.optimizer.lr = 1.5e-4  # per 256 images: 2.4e-3
    config.optimizer.lr_reference_batch = 256

    config.schedule.update(name="cosine", warmup="40 epochs", start_lr=0.0, end_lr=0.0)

    config.batch_size = 4096
    config.duration = "100 epochs"
    common.watch_imagenet(config, tasks=("knn",))
    return config
