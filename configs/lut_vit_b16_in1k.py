"""LUT, ViT-B/16 on ImageNet-1k for 1600 epochs (Kim et al. 2024, arXiv 2310.13593).

    python -m mim_jax.train --config=configs/lut_vit_b16_in1k.py --workdir=runs/lut_vit_b16

Published ImageNet-1k top-1 at 224 px: 84.2 % fine-tuned (MAE beside it: 83.7 %); there is no linear probe. All values
are those of the official command; its code's own defaults have a weight of 0.1 and heads without BatchNorm.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="lut")

    common.imagenet(config, crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True)
    # DeiT III's simple random crop, not a resized one; the second view is jittered and grey, solarised or blurred.
    config.data.update(crop="window", crop_padding=4, views="weak_strong")
    config.data.update(color_jitter=(0.4, 0.4, 0.2, 0.1), color_jitter_probability=0.8, three_augment=True)

    config.image_size = 224
    config.model.update(patch_size=16, width=768, depth=12, heads=12, mlp_ratio=4.0)
    config.decoder.update(width=512, depth=8, heads=16, mlp_ratio=4.0)
    config.projector.hidden = 4096

    config.mask_ratio = 0.75
    config.norm_pix_loss = True
    config.bc_weight = 0.25
    config.ema_momentum = 0.996

    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)
    # lr = 1.5e-4 * sqrt(batch) / 4: 2.4e-3 at 4096, as MAE's, but less of a cut below.
    config.optimizer.update(lr=1.5e-4, lr_reference_batch=16, lr_scaling="sqrt")

    config.schedule.update(name="cosine", warmup="40 epochs", start_lr=0.0, end_lr=0.0)

    config.batch_size = 4096
    config.accumulation_steps = 4  # BatchNorm's statistics are those of 1024 images
    config.duration = "1600 epochs"
    common.watch_imagenet(config, tasks=("knn", "reconstruct"))
    return config
