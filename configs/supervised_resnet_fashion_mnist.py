"""A small ResNet trained with labels on Fashion-MNIST from scratch, in minutes on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/supervised_resnet_fashion_mnist.py --workdir=runs/supervised_resnet
    python tools/occlusion_gallery.py --workdir=runs/supervised_resnet

The last command shows how it takes it when parts of the images are missing.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(task="classification", backbone="resnet")

    common.fashion_mnist(config)
    config.num_classes = 10
    config.label_smoothing = 0.1
    config.mixing.update(probability=0.0)

    # Maps of 28x28, 14x14 and 7x7.
    config.model.update(stem="small", stem_width=16, depths=(1, 1, 1), widths=(8, 16, 32), drop_path=0.0)

    config.batch_size = 128
    config.duration = "2 epochs"
    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, weight_decay=0.05, layer_decay=1.0)
    config.optimizer.lr = 2e-3
    config.optimizer.lr_reference_batch = None
    config.schedule.update(name="cosine", warmup="100 steps")

    common.watch_fashion_mnist(config, tasks=("accuracy",))
    config.evaluation.every = "1 epochs"
    return config
