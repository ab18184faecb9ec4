"""DMAE on Fashion-MNIST, a small ViT from a larger one: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/dmae_fashion_mnist.py --workdir=runs/dmae_fashion_mnist

That learns from a teacher of random weights, which says a little. For the method, train an MAE of the teacher's size
first, and add `--config.teacher.weights=runs/mae_fashion_mnist_teacher`:

    python -m mim_jax.train --config=configs/mae_fashion_mnist.py \\
        --config.model.width=144 --config.model.depth=6 --workdir=runs/mae_fashion_mnist_teacher

The values are this project's own; the method is Bai et al. 2023 (arXiv 2208.12256).
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="dmae")

    common.fashion_mnist(config)

    config.model.update(patch_size=4, width=96, depth=4, heads=3)
    config.decoder.update(width=64, depth=1, heads=2)
    config.teacher.update(name="vit", weights="random", patch_size=4, width=144, depth=6, heads=3)

    config.mask_ratio = 0.6
    config.norm_pix_loss = False  # most border patches are plain black: nothing to normalise
    config.alignment.weight = 1.0  # of the blocks at three quarters of the depth: the third of 4, the fourth of 6

    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    config.optimizer.lr = 2e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn", "reconstruct"))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
