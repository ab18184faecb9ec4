"""G2SD's generic distillation, ViT-S/16 from ViT-B/16 on ImageNet-1k for 300 epochs (Huang et al. 2023).

    python -m mim_jax.train --config=configs/g2sd_vit_s16_in1k.py --workdir=runs/g2sd_vit_s16 \\
        --config.teacher.weights=mae_visualize_vit_base.pth

Published ImageNet-1k top-1 after the second stage, `configs/g2sd_vit_s16_in1k_distillation.py`: 98.7 % of the teacher's
83.6 %. The paper is arXiv 2302.14771; the values are those of the official script. Its gradient clipping is read from
the command line and never applied.

The teacher is MAE's ViT-B/16, trained for 1600 epochs, WITH its decoder: `mae_pretrain_vit_base.pth` has none and is
refused (the official code then learns from a random decoder). A run of `configs/mae_vit_b16_in1k.py` has all it takes.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="g2sd")

    common.imagenet(config, crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True)

    config.image_size = 224
    config.model.update(patch_size=16, width=384, depth=12, heads=6, mlp_ratio=4.0)
    config.decoder.update(width=256, depth=4, heads=8, mlp_ratio=4.0)
    config.teacher.name = "mae_vit_b16"
    config.teacher.decoder.update(width=512, depth=8, heads=16, mlp_ratio=4.0, until=4)

    config.mask_ratio = 0.75
    config.supervise_all = True

    # Biases and norms are exempt from weight decay; the class and mask tokens are not.
    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)
    config.optimizer.lr = 1.5e-4  # per 256 images: 2.4e-3
    config.optimizer.lr_reference_batch = 256

    # The schedule's rates are per 256 images too; the official minimum of 2.5e-6 is absolute.
    config.schedule.update(name="cosine", warmup="10 epochs", start_lr=0.0, end_lr=2.5e-6 * 256 / 4096)

    config.batch_size = 4096
    config.duration = "300 epochs"
    common.watch_imagenet(config, tasks=("knn",))
    return config
