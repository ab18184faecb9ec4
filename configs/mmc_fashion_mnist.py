"""MMC-style pre-training on Fashion-MNIST, a small ViT: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/mmc_fashion_mnist.py --workdir=runs/mmc_fashion_mnist

The values are this project's own; the method is after Wu et al. 2023 (arXiv 2308.11448). `zero_shot` is its purpose:
garments segmented by the similarity of their patches to one of them.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="mmc")

    common.fashion_mnist(config)
    config.data.update(views="random", crop="random_resized", crop_scale=(0.4, 1.0))
    # Of one channel, brightness and contrast can be jittered; grey it is already.
    config.data.update(color_jitter=(0.4, 0.4, 0.0, 0.0), color_jitter_probability=0.8)

    config.model.update(patch_size=4, width=96, depth=4, heads=3)
    config.decoder.update(width=64, depth=1, heads=2)
    config.projector.update(hidden=256, output=64)
    config.prototypes.update(count=512, hidden=256, bottleneck=64)

    config.mask_ratio = 0.6
    config.max_rectangle = 0.45  # up to 3 of 7 patches
    config.ema_momentum = 0.99  # runs of hundreds of steps
    config.centre_momentum = 0.99  # over as many images as 0.9 at the large recipe's batch of 1024

    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, weight_decay=0.05, clip_norm=3.0)
    config.optimizer.lr = 1e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn", "statistics", "zero_shot", "reconstruct"))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
