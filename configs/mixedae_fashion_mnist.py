"""MixedAE on Fashion-MNIST, a small ViT: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/mixedae_fashion_mnist.py --workdir=runs/mixedae_fashion_mnist

The values are this project's own; the method is Chen et al. 2023 (arXiv 2303.17152).
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="mixedae")

    common.fashion_mnist(config)
    config.image_size = 32  # a grid of 8x8, which four images can share; 7x7 they cannot
    config.data.crop = config.data.eval_crop = "resize"

    config.model.update(patch_size=4, width=96, depth=4, heads=3)
    config.decoder.update(width=64, depth=1, heads=2)

    config.group_size = 4
    config.segment_std = 0.5  # with 0.02 the contrast would not leave chance in so short a run
    config.norm_pix_loss = False  # most border patches are plain black: nothing to normalise

    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    config.optimizer.lr = 2e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn", "reconstruct"))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
