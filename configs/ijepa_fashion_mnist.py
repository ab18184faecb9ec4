"""I-JEPA on Fashion-MNIST, a small ViT: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/ijepa_fashion_mnist.py --workdir=runs/ijepa_fashion_mnist

What it reaches is in the README's table. The values are this project's own; the method is
Assran et al. 2023 (arXiv 2301.08243).
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="ijepa")

    common.fashion_mnist(config)

    # Of the 16 pixels of a patch an embedding of deviation 0.02 makes a tenth of what positions are: they would be all
    # that tokens, and targets, tell of.
    config.model.update(patch_size=4, width=96, depth=4, heads=3, init_scheme="xavier")
    config.predictor.update(width=48, depth=2)
    config.ema_momentum = 0.996

    # Four blocks cover most of a 7x7 grid; an image alone keeps 15 context patches on average.
    config.blocks.update(context_share=0.245, truncation="random")

    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, weight_decay=0.05)
    config.optimizer.lr = 1e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn", "statistics"))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
