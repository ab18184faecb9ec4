"""MMC-style, ViT-S/16 on ImageNet-1k for 100 epochs (after Wu et al. 2023, arXiv 2308.11448).

    python -m mim_jax.train --config=configs/mmc_vit_s16_in1k.py --workdir=runs/mmc_vit_s16

No official code has been released and the paper's abstract tells no numbers: nothing here is published, and no result
of the paper should be expected of it. Masks, projector and predictor are those of the same lab's public code;
optimiser, schedule and views are of the kind that DINO, iBOT and MoCo v3 use.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="mmc")

    common.imagenet(config, crop_scale=(0.25, 1.0), interpolation="bicubic", flip=True)
    config.data.views = "random"
    config.data.update(color_jitter=(0.4, 0.4, 0.2, 0.1), color_jitter_probability=0.8)
    config.data.update(grayscale=0.2, blur=0.5, solarize=0.1)

    config.image_size = 224
    config.model.update(patch_size=16, width=384, depth=12, heads=6, mlp_ratio=4.0)
    config.projector.update(hidden=1024, output=256)
    config.prototypes.update(count=8192, hidden=2048, bottleneck=256)

    config.mask_ratio = 0.6
    config.max_rectangle = 0.3
    config.replacement = "mask_token"
    config.distil_target = "class"
    config.update(mim_weight=1.0, distil_weight=1.0, contrast_weight=1.0)
    config.update(student_temperature=0.1, teacher_temperature=(0.04, 0.07), centre_momentum=0.9)
    config.contrast_temperature = 0.2
    config.update(ema_momentum=0.996, ema_momentum_end=1.0)

    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, eps=1e-8, clip_norm=3.0)
    config.optimizer.update(weight_decay=0.04, weight_decay_end=0.4)
    config.optimizer.update(lr=5e-4, lr_reference_batch=256)

    config.schedule.update(name="cosine", warmup="10 epochs", start_lr=0.0, end_lr=0.0)

    config.batch_size = 1024
    config.duration = "100 epochs"
    common.watch_imagenet(config, tasks=("knn", "statistics", "reconstruct"))
    return config
