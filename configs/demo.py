"""MAE on Fashion-MNIST as `make demo` runs it: minutes on two CPU cores.

    python -m mim_jax.train --config=configs/demo.py --workdir=runs/demo

Values are this project's own; the method is He et al. 2022 (arXiv 2111.06377).
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="mae")

    common.fashion_mnist(config)

    config.model.update(patch_size=4, width=96, depth=4, heads=3, pool="mean")
    config.decoder.update(width=64, depth=1, heads=2)

    config.mask_ratio = 0.6
    config.norm_pix_loss = False  # most border patches are plain black: nothing to normalise

    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    config.optimizer.lr = 2e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128  # at this size more steps teach more than larger batches
    config.duration = "1200 steps"
    common.watch_fashion_mnist(config, tasks=("knn",))
    return config
