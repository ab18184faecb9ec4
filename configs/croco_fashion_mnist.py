"""CroCo on Fashion-MNIST, a small ViT: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/croco_fashion_mnist.py --workdir=runs/croco_fashion_mnist

There is no second viewpoint in this data: two random crops of each image stand in for it, which the authors found to be
a poor replacement (issue 28 of their repository). The values are this project's own; the method is Weinzaepfel et al.
2022 and 2023 (arXiv 2210.10716, 2211.10408), here with the rotary positions of the second version.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="croco")

    common.fashion_mnist(config)
    config.data.views = "random"
    config.data.crop = "random_resized"
    config.data.crop_scale = (0.4, 1.0)
    config.data.flip = False  # a mirrored view shows another scene

    config.model.update(patch_size=4, width=96, depth=4, heads=3, position="rope")
    config.decoder.update(width=64, depth=2, heads=2)

    config.mask_ratio = 0.9
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
