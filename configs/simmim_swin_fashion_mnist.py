"""SimMIM on Fashion-MNIST, a small Swin Transformer: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/simmim_swin_fashion_mnist.py --workdir=runs/simmim_swin_fashion_mnist

The values are this project's own; the method is Xie et al. 2022 (arXiv 2111.09886).
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="simmim", backbone="swin")

    common.fashion_mnist(config)

    # 14x14 tokens in shifted windows, then 7x7 of twice the width, each of 4x4 pixels: one cell.
    config.model.update(patch_size=2, width=48, depths=(2, 2), heads=(3, 6), window=7, drop_path=0.0)

    config.mask_ratio = 0.6
    config.mask_patch_size = 4

    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, weight_decay=0.05, clip_norm=5.0)
    config.optimizer.no_decay = ("bias$", "scale$", "mask_token$")
    config.optimizer.lr = 2e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn", "reconstruct"))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
