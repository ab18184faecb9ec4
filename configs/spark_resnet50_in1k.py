"""SparK, ResNet-50 on ImageNet-1k for 1600 epochs (Tian et al. 2023, arXiv 2301.03580; keyu-tian/SparK).

    python -m mim_jax.train --config=configs/spark_resnet50_in1k.py --workdir=runs/spark_resnet50

Published ImageNet-1k top-1 at 224 px, fine-tuned: 80.6 %. The same recipe gives 82.2 % with a ResNet-101, 82.7 % with a
152 and 83.1 % with a 200, at drop path rates of 0.08, 0.10 and 0.15 (`resnet_size("101")` and so on).

The decoder does more multiplications than the encoder, so that a step costs almost four times a dense ResNet-50's.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common
from mim_jax.models.resnet import resnet_size


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="spark", backbone="resnet")

    common.imagenet(config, crop_scale=(0.67, 1.0), interpolation="bicubic", flip=True)

    config.image_size = 224
    config.model.update(**resnet_size("50"), drop_path=0.05)
    config.decoder.width = 768
    config.densify_norm = "batch_norm"

    config.mask_ratio = 0.6  # 29 of 49 patches of 32x32 pixels
    config.norm_pix_loss = True

    # Biases, norms and mask tokens are exempt from weight decay, and with it from LAMB's trust ratio.
    config.optimizer.update(name="lamb", b1=0.9, b2=0.95, eps=1e-6, weight_decay=0.04, weight_decay_end=0.2)
    config.optimizer.no_decay = ("bias$", "scale$", "mask_token$")
    config.optimizer.clip_norm = 5.0
    config.optimizer.lr = 2e-4  # per 256 images: 3.2e-3
    config.optimizer.lr_reference_batch = 256

    # From 0.005 to 0.001 times the peak, which the last step has.
    config.schedule.update(name="cosine", warmup="40 epochs", start_lr=1e-6, end_lr=2e-7, reaches_end=True)
    config.compute.dtype = "float32"  # as published

    config.batch_size = 4096
    config.duration = "1600 epochs"
    common.watch_imagenet(config, tasks=("knn", "reconstruct"))
    return config
