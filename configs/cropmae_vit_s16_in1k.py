"""CropMAE, ViT-S/16 on ImageNet-1k for 400 epochs (Eymael et al. 2024, arXiv 2403.17823).

    python -m mim_jax.train --config=configs/cropmae_vit_s16_in1k.py --workdir=runs/cropmae_vit_s16

Published, by label propagation with frozen features: 60.1 J&F on DAVIS-2017, 33.2 mIoU on VIP, 43.5 PCK@0.1 on JHMDB.
The values are those of the official training script. Its code sets the rate after each update, so that the very first
one runs at the peak; that is not repeated here.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="cropmae")

    # The target is a local crop of the global reference crop; each is flipped by itself.
    common.imagenet(config, crop_scale=(0.1, 1.0), interpolation="bilinear", flip=True)
    config.data.views = "global_to_local"
    config.data.local_scale = (0.3, 0.6)

    config.image_size = 224
    config.model.update(patch_size=16, width=384, depth=12, heads=6, mlp_ratio=4.0)
    config.decoder.update(width=256, depth=4, heads=8, mlp_hidden=2048, dropout=0.1)

    config.mask_ratio = 0.985  # 2 of 196 patches stay visible
    config.norm_pix_loss = True

    # Biases and norms are exempt from weight decay; the class and mask tokens are not.
    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)
    config.optimizer.lr = 1e-4  # per 256 images: 8e-4
    config.optimizer.lr_reference_batch = 256

    config.schedule.update(name="cosine", warmup="20 epochs", start_lr=0.0, end_lr=0.0)

    config.batch_size = 2048
    config.duration = "400 epochs"
    common.watch_imagenet(config, tasks=("knn", "reconstruct"))
    return config
