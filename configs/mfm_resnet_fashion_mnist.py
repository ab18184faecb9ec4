"""MFM on Fashion-MNIST, a small ResNet: minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/mfm_resnet_fashion_mnist.py --workdir=runs/mfm_resnet_fashion_mnist

The values are this project's own; the method is Xie et al. 2023 (arXiv 2206.07706).
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; the argument is a corruption, "frequency" unless it is given."""
    config = mim_jax.default_config(method="mfm", backbone="resnet")

    common.fashion_mnist(config)

    config.model.update(stem="small", stem_width=16, depths=(1, 2, 2), widths=(8, 16, 24))

    config.corruption = arg or "frequency"
    config.frequency.update(radius=3.0, low_pass_probability=0.3)  # a low-pass image keeps 25 of 784 frequencies
    config.super_resolution.factor = 4

    config.optimizer.update(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05, clip_norm=3.0)
    config.optimizer.no_decay = ("bias$", "scale$")
    config.optimizer.lr = 2e-3
    config.optimizer.lr_reference_batch = None

    config.schedule.update(name="cosine", warmup="100 steps")

    config.batch_size = 128
    config.duration = "2 epochs"
    common.watch_fashion_mnist(config, tasks=("knn", "reconstruct"))
    config.evaluation.every = "1 epochs"  # from step 0
    return config
