"""LUT on Fashion-MNIST, a small ViT: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/lut_fashion_mnist.py --workdir=runs/lut_fashion_mnist

The values are this project's own; the method is Kim et al. 2024 (arXiv 2310.13593).
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="lut")

    common.fashion_mnist(config)
    config.data.update(crop="window", crop_padding=4, views="weak_strong")
    # Of one channel, brightness and contrast can be jittered; grey it is already.
    config.data.update(color_jitter=(0.4, 0.4, 0.0, 0.0), color_jitter_probability=0.8, three_augment=True)

    config.model.update(patch_size=4, width=96, depth=4, heads=3)
    config.decoder.update(width=64, depth=1, heads=2)
    config.projector.hidden = 256

    config.mask_ratio = 0.6
    config.norm_pix_loss = False  # most border patches are plain black: nothing to normalise
    config.ema_momentum = 0.99  # runs of hundreds of steps

    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    config.optimizer.lr = 2e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn", "reconstruct"))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
