"""HPM on Fashion-MNIST, a small ViT: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/hpm_fashion_mnist.py --workdir=runs/hpm_fashion_mnist

The values are this project's own; the method is Wang et al. 2023 (arXiv 2304.05919).
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="hpm")

    common.fashion_mnist(config)

    config.model.update(patch_size=4, width=96, depth=4, heads=3)
    config.decoder.update(width=64, depth=1, heads=2)  # of each of the two decoders

    config.mask_ratio = 0.6
    config.norm_pix_loss = False  # most border patches are plain black: nothing to normalise
    # With the official 0.999 a teacher would still be 63 % its own start after the 469 steps of an epoch.
    config.ema.update(start=0.99, end=0.999, epochs=2)

    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05, clip_norm=5.0)
    config.optimizer.lr = 2e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn", "reconstruct"))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
