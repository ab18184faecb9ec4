"""A small ViT trained with labels on Fashion-MNIST from scratch: a teacher, made in a minute on two CPU cores.

    python tools/prepare_data.py fashion_mnist
    python -m mim_jax.train --config=configs/supervised_fashion_mnist.py --workdir=runs/supervised_fashion_mnist

Methods that learn from features take it by `--config.teacher.weights=runs/supervised_fashion_mnist`.
"""

from ml_collections import ConfigDict

import mim_jax
from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; it takes no argument."""
    del arg
    config = mim_jax.default_config(task="classification")

    common.fashion_mnist(config)
    config.num_classes = 10
    config.label_smoothing = 0.1
    config.mixing.update(probability=0.0)

    # What the teacher "vit" is by default: a class token, which the head reads, and fixed positions.
    config.model.update(patch_size=4, width=96, depth=4, heads=3)
    config.model.update(pool="class", position="sincos", drop_path=0.0)

    config.batch_size = 128
    config.duration = "2 epochs"
    config.optimizer.update(name="adamw", b1=0.9, b2=0.999, weight_decay=0.05, layer_decay=1.0)
    config.optimizer.lr = 1e-3
    config.optimizer.lr_reference_batch = None
    config.schedule.update(name="cosine", warmup="100 steps")

    common.watch_fashion_mnist(config, tasks=("accuracy",))
    config.evaluation.every = "1 epochs"
    return config
