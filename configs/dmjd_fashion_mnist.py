"""DMJD on Fashion-MNIST, a small ViT: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/dmjd_fashion_mnist.py --workdir=runs/dmjd_fashion_mnist

The values are this project's own; the method is Ma et al. 2023 (arXiv 2301.00230). Of the 7x7 patches single ones are
hidden, for cells of two by two would not tile them, and each has one histogram; its size is that of a patch.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="dmjd")

    common.fashion_mnist(config)

    config.model.update(backbone="vit", patch_size=4, width=96, depth=4, heads=3)
    config.decoder.update(width=64, depth=1, heads=2, mlp_ratio=4.0)

    config.mask_ratio = 0.6
    config.mask_patch_size = 4
    config.hog.update(cell_size=4, orientations=9)
    config.visible_order = "kept"  # no published number depends on the released code's order here

    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    config.optimizer.lr = 2e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn",))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
