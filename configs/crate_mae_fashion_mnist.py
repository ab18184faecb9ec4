"""CRATE-MAE on Fashion-MNIST, a small encoder: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/crate_mae_fashion_mnist.py --workdir=runs/crate_mae_fashion_mnist

The values are this project's own; the method is Pai et al. 2024 (arXiv 2404.02446).
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="crate_mae")

    common.fashion_mnist(config)

    config.model.update(patch_size=4, width=96, depth=4, heads=3)  # the decoder has as many layers

    config.mask_ratio = 0.6
    config.norm_pix_loss = False  # most border patches are plain black: nothing to normalise

    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    config.optimizer.lr = 2e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn", "reconstruct", "coding_rate"))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
