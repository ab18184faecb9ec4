"""CropMAE on Fashion-MNIST, a small ViT: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/cropmae_fashion_mnist.py --workdir=runs/cropmae_fashion_mnist

The values are this project's own; the method is Eymael et al. 2024 (arXiv 2403.17823).
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="cropmae")

    common.fashion_mnist(config)
    config.data.views = "global_to_local"
    config.data.crop = "random_resized"
    config.data.crop_scale = (0.5, 1.0)
    config.data.local_scale = (0.3, 0.6)
    config.data.interpolation = "bilinear"

    config.model.update(patch_size=4, width=96, depth=4, heads=3)
    config.decoder.update(width=64, depth=2, heads=2, mlp_hidden=256, dropout=0.0)  # too small to overfit

    config.mask_ratio = 0.95  # 2 of 49 patches stay visible, as many as in the paper
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
