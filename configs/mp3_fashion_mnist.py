"""MP3 on Fashion-MNIST, a small ViT: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/mp3_fashion_mnist.py --workdir=runs/mp3_fashion_mnist

The values are this project's own; the method is Zhai et al. 2022 (arXiv 2207.07611).
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="mp3")

    common.fashion_mnist(config)
    config.data.flip = False  # shoes point to the left: one thing less to guess

    config.model.update(patch_size=4, width=96, depth=4, heads=3)
    config.mask_ratio = 0.5  # small inputs want a larger context; plain black patches cannot be told apart anyway

    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    config.optimizer.lr = 1e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn",))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
