"""SparK on Fashion-MNIST, a small ResNet: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/spark_fashion_mnist.py --workdir=runs/spark_fashion_mnist

The values are this project's own; the method is Tian et al. 2023 (arXiv 2301.03580). Three stages at strides 1, 2 and 4
give 7x7 patches of four pixels; the maps of the last two are decoded.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(method="spark", backbone="resnet")

    common.fashion_mnist(config)

    config.model.update(stem="small", stem_width=16, depths=(1, 2, 2), widths=(8, 16, 24))
    config.decoder.width = 32

    config.mask_ratio = 0.6
    config.norm_pix_loss = False  # most border patches are plain black: nothing to normalise

    config.optimizer.update(name="lamb", b1=0.9, b2=0.95, eps=1e-6, weight_decay=0.04, weight_decay_end=0.2)
    config.optimizer.no_decay = ("bias$", "scale$", "mask_token$")
    config.optimizer.clip_norm = 5.0
    config.optimizer.lr = 5e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn", "reconstruct"))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
