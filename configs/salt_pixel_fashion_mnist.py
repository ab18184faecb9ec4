"""V-Pixel, the first stage of SALT, on Fashion-MNIST images, a small ViT: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/salt_pixel_fashion_mnist.py --workdir=runs/salt_pixel_fashion_mnist

Its encoder is the teacher of `salt_fashion_mnist.py`. The values are this project's own; the method is Li et al. 2025
(arXiv 2509.24317), here with images for clips.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="salt_pixel")

    common.fashion_mnist(config)

    config.num_frames = 1
    # Of the 16 pixels of a patch an embedding of deviation 0.02 makes a tenth of what positions are: they would be all
    # that tokens, and targets, tell of.
    config.model.update(patch_size=4, width=96, depth=4, heads=3, init_scheme="xavier")
    config.decoder.update(width=64, depth=1, heads=2)
    config.norm_pix_loss = False  # most border patches are plain black: nothing to normalise

    # A 7x7 grid is small enough to predict all that is hidden; cutting the last rows would leave those of no image.
    config.blocks.update(target_share=(0.8, 0.96), truncation="random")

    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    config.optimizer.lr = 2e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn", "reconstruct"))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
